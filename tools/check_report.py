#!/usr/bin/env python
"""Ask a browser about the report: does it open quickly, work by keyboard, and stay harmless whatever a class is called?

Needs Chromium or Chrome (or a path to one in the variable CHROMIUM); says SKIPPED where there is none.
`--shots FOLDER` keeps pictures of the page.
Exit status: 0, or 1 with a sentence for each thing that does not hold.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser, find_browser

EVIL = [
    '<img src=x onerror=alert(1)>',
    '</script><script>alert(2)</script>',
    '"><svg onload=alert(3)>',
    "Ivory & 'Heron'",
    '<!--',
]
DRAWN = "document.readyState === 'complete' && performance.getEntriesByName('shown').length"
SIZES = ((1280, 900), (390, 844))
SECONDS = (2.0, 4.0)  # that the reports may take to open

# ---- a synthetic folder


def draw_real(folder):
    "Sixty drawn birds"
    from sgdmix.core import rng_for
    from sgdmix.data.birds import BACKGROUNDS, SPECIES, draw_bird

    rng, species = rng_for(0, 'report'), list(SPECIES)
    folder.mkdir(parents=True)
    for k in range(60):
        image, *_ = draw_bird(species[k % 12], BACKGROUNDS[k % 6], rng)
        image.save(folder / f'{k}.png')


def make_row(i, classes, rng):
    "The manifest's row of one image; every twentieth is rejected"
    from sgdmix.core import hash_of, slug

    label, key = classes[i % len(classes)], hash_of(i)
    row = dict(
        file_name=f'{slug(label)}/{key}.png',
        method='sgdmix',
        label=label,
        source=f'{i % 60}.png',
        target=f'{(7 * i + 1) % 60}.png',
        start='mixed',
        prompt=f'a photo of a {label}',
        negative_prompt='',
        strength=(0.3, 0.5, 0.7)[i % 3],
        seed=0,
        copy=0,
        label_names=[label],
        label_weights=[1.0],
        mask_area=round(float(rng.beta(4, 6)), 4),
        mask_flag='small' if i % 11 == 0 else '',
        target_flag='',
        distance=round(float(rng.gamma(9, 0.8)), 3),
        key=key,
        index=i,
        model_hash='model',
        version='0',
    )
    if i % 20 == 7:
        row |= dict(file_name='', rejected=f'cosine {rng.random():.2f} <i>is</i> too low')
    return row


def write_lines(path, rows):
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))


def make_folder(dest, n):
    "A synthetic folder of `n` drawn birds, some rejected, some classes with hostile names; its rows"
    from sgdmix.core import rng_for, write_json
    from sgdmix.data.birds import BACKGROUNDS, SPECIES, draw_bird

    draw_real(dest / 'real')
    rng, species = rng_for(1, 'report'), list(SPECIES)
    classes = sorted([*species[:7], *EVIL])
    rows = [make_row(i, classes, rng) for i in range(n)]
    kept = [r for r in rows if r['file_name']]
    for r in kept:
        path = dest / 'train' / r['file_name']
        path.parent.mkdir(parents=True, exist_ok=True)
        image, *_ = draw_bird(species[r['index'] % 12], BACKGROUNDS[r['index'] % 6], rng)
        image.save(path, compress_level=1)
    settings = dict(size=64, policy='squash', strengths=[0.3, 0.5, 0.7])
    config = dict(method='sgdmix', settings=settings, refiner='model', seed=0, split='none', classes=classes)
    write_json(dest / 'synthesis.json', dict(config, version='0'))
    write_lines(dest / 'train' / 'metadata.jsonl', kept)
    write_lines(dest / 'rejected.jsonl', [r for r in rows if not r['file_name']])
    return rows


def fake_reading(rng, level):
    "An accuracy with an interval"
    value = min(0.95, max(0.02, level + 0.05 * rng.standard_normal()))
    return dict(mean=value, low=max(0, value - 0.06), high=min(1, value + 0.06))


def fake_diagnosis(classes, rng, gap):
    "What a diagnosis of a classifier might have found"
    levels = dict(original=0.8, only_fg=0.4, only_bg_b=0.3, only_bg_t=0.3, only_bg_filled=0.3, mixed_same=0.7)
    accuracy = {name: fake_reading(rng, level) for name, level in levels.items()}
    accuracy['mixed_rand'] = fake_reading(rng, 0.7 - gap)
    accuracy['mixed_next'] = fake_reading(rng, 0.68 - gap)
    by_class = [dict(label=c, images=5, gap=gap, gap_low=gap - 0.2, gap_high=gap + 0.2) for c in classes]
    shift = dict(mean=gap, low=gap - 0.08, high=gap + 0.08)
    how = dict(masks='given')
    return dict(accuracy=accuracy, gap=shift, flips=dict(difference=shift), by_class=by_class, how=how, labels=classes)


def fake_test(classes, rng):
    "A confusion matrix and a calibration"
    matrix = rng.integers(0, 3, (len(classes), len(classes) + 1)) * (rng.random((len(classes), len(classes) + 1)) < 0.2)
    for k in range(len(classes)):
        matrix[k, k] = 6
    bins = [dict(n=int(rng.integers(1, 20)), confidence=k / 10 + 0.05, accuracy=k / 11) for k in range(3, 10)]
    right = sum(matrix[k, k] for k in range(len(classes))) / matrix.sum()
    calibration = dict(ece=0.07, bins=bins)
    return dict(n=int(matrix.sum()), accuracy=float(right), confusion=matrix.tolist(), calibration=calibration)


def add_classifiers(home, classes):
    "Two kept classifiers and their diagnosis, with the hostile names, as a run leaves them in a workspace"
    from sgdmix.core import rng_for, write_json
    from sgdmix.data.birds import BACKGROUNDS, SPECIES, draw_bird
    from sgdmix.networks import make_net
    from sgdmix.training.classifiers import save_classifier

    rng, titles = rng_for(2, 'report'), dict(before='Real images only', after=EVIL[0])
    tests = {}
    for which, folder, gap in (('before', 'real', 0.4), ('after', 'best', 0.1)):
        history = [dict(epoch=e, train_loss=2.2 / (e + 1), valid_loss=2.4 / (e + 1), valid=e / 12) for e in range(9)]
        net = make_net('small', len(classes))
        save_classifier(home / folder, net, classes, 64, method=titles[which], history=history)
        write_json(home / 'diagnosis' / which / 'diagnosis.json', fake_diagnosis(classes, rng, gap))
        tests[which] = fake_test(classes, rng)
    cases = []
    for k in range(4):
        case = dict(label=classes[k], background=classes[-1 - k], original=f'{k}-a.png', mixed=f'{k}-b.png')
        for name in ('a', 'b', 'c', 'd'):
            path = home / 'diagnosis' / 'cases' / f'{k}-{name}.png'
            path.parent.mkdir(exist_ok=True)
            draw_bird(list(SPECIES)[k], BACKGROUNDS[k], rng)[0].save(path)
        for which, name in (('before', 'c'), ('after', 'd')):
            case[which] = dict(predicted=EVIL[k], probability=0.2, map=f'{k}-{name}.png')
        cases.append(case)
    answers = dict(before=f'Yes, {EVIL[0]} reads the background.', after='No reliance was found.')
    change = {name: dict(mean=-0.3, low=-0.4, high=-0.2) for name in ('original', 'gap')}
    change['mixed_rand'] = dict(mean=0.3, low=0.2, high=0.4)
    which = dict(titles=titles, recommended=titles['before'], folders=dict(after=f'classifiers/{EVIL[1]}'))
    proof = dict(which, images=60, draws=2, answers=answers, tests=tests, cases=cases, change=change)
    write_json(home / 'diagnosis' / 'proof.json', proof)
    write_json(home / 'config.json', {})


# ---- the page that is open


class Page:
    "Checks of the page that is open; `found` holds a sentence for each that fails"

    def __init__(self, browser, rows):
        self.browser, self.rows, self.found = browser, rows, []
        self.kept = [r for r in rows if r['file_name']]

    def ask(self, js):
        return self.browser.ask(js)

    def expect(self, ok, sentence):
        if not ok:
            self.found.append(sentence)

    def n_shown(self):
        "Number of images that the page counts"
        return int(self.ask("document.querySelector('#count').textContent").split()[0].replace(',', ''))

    def pick(self, field, value):
        "Choose an entry of a list"
        element = f'document.getElementById({field!r})'
        self.ask(f'{element}.value = {json.dumps(value)}')
        self.ask(f"{element}.dispatchEvent(new Event('change'))")

    def focus(self):
        "Row of the strip that has the focus"
        return self.ask('+document.activeElement.dataset.id')

    def first(self):
        "Row of the first image"
        return self.ask("+document.querySelector('.strip, .tile')?.dataset.id")

    def check_names(self):
        "Hostile names are text, and nothing else"
        n = self.n_shown()
        self.expect(n == len(self.kept), f'it counts {n} images of {len(self.kept)}')
        self.ask("document.querySelectorAll('.group').forEach(g => g.scrollIntoView())")
        heads = self.ask("[...document.querySelectorAll('.group > h2')].map(h => h.firstChild.data)")
        self.expect(set(EVIL) <= set(heads), 'a class is missing or its name is not shown as it is')
        markup = '[onerror], [onload], main script, main svg[onload], main i b, iframe, object'
        clean = f'document.scripts.length === 1 && !document.querySelector({markup!r})'
        self.expect(self.ask(clean), 'a name became markup')

    def check_filters(self):
        "Each filter counts right, and the search finds a key"
        labels = sorted({r['label'] for r in self.rows})
        filters = [
            ('class', str(labels.index(EVIL[0])), lambda r: r['label'] == EVIL[0]),
            ('strength', '0.5', lambda r: r['strength'] == 0.5),
            ('flag', 'small', lambda r: r['mask_flag'] == 'small'),
        ]
        for field, value, belongs in filters:
            self.pick(field, value)
            self.expect(self.n_shown() == sum(map(belongs, self.kept)), f'the filter by {field} miscounts')
            self.pick(field, '')
        self.ask('document.activeElement.blur()')
        self.browser.key('/')
        self.expect(self.ask("document.activeElement.id === 'q'"), '/ does not lead to the search')
        self.browser.type(self.kept[5]['key'])
        one = "/^1 of/.test(document.getElementById('count').textContent)"
        self.expect(self.browser.wait(one), 'the search does not find a key')
        self.browser.key('Escape')
        self.expect(self.n_shown() == len(self.kept), 'Esc does not clear the search')

    def check_order(self):
        "Sorted by distance, as strips and as a sheet"
        by_index = sorted(self.rows, key=lambda r: r['index'])
        farthest = max(self.kept, key=lambda r: r['distance'])['key']
        self.ask("document.getElementById('grouped').click()")
        self.pick('sort', 'distance -1')
        self.browser.wait("document.querySelector('.strip')")
        self.expect(by_index[self.first()]['key'] == farthest, 'the greatest distance does not come first')
        self.ask("document.getElementById('sheet').click()")
        self.browser.wait("document.querySelector('.tile')")
        self.expect(by_index[self.first()]['key'] == farthest, 'the sheet has another order')
        self.ask("document.getElementById('strips').click()")
        self.ask("document.getElementById('grouped').click()")
        self.pick('sort', 'plan')
        self.browser.wait("document.querySelector('.strip')")

    def check_keys(self):
        "Arrows among strips; Enter, arrows and Esc in an image"
        self.ask("document.querySelector('.strip').focus()")
        one = self.focus()
        self.browser.key('ArrowDown')
        two = self.focus()
        self.browser.key('ArrowUp')
        self.expect(one != two and self.focus() == one, 'arrows do not move among the strips')
        self.browser.key('Enter')
        self.expect(self.browser.wait("document.getElementById('box').open"), 'Enter does not open an image')
        self.browser.key('ArrowRight')
        bar = self.ask("document.querySelector('.bar-top .muted').textContent")
        self.expect(bar.startswith('2 of'), 'an arrow does not lead to the next image')
        self.browser.key('Escape')
        closed = f"!document.getElementById('box').open && +document.activeElement.dataset.id === {two}"
        self.expect(self.browser.wait(closed), 'Esc does not close the image, or the focus is lost')

    def check_words(self):
        "Buttons, pictures and fields have words"
        words = "e.textContent + (e.getAttribute('aria-label') || '')"
        pictures = "[...e.querySelectorAll('img')].map(i => i.alt)"
        buttons = f"[...document.querySelectorAll('button')].every(e => ({words} + {pictures}).trim())"
        self.expect(self.ask(buttons), 'a button has no name')
        self.expect(self.ask("[...document.images].every(i => i.hasAttribute('alt'))"), 'a picture has no words')
        fields = "[...document.querySelectorAll('select, input')].every(e => e.labels.length)"
        self.expect(self.ask(fields), 'a field has no words')

    def check_sections(self):
        "Sections by arrow keys, none wider than the window; the rejected, and the charts"
        self.ask("document.getElementById('tab-images').focus()")
        for tab in self.ask("[...document.querySelectorAll('[role=tab]')].map(t => t.id)"):
            active = f'document.activeElement.id === {tab!r}'
            selected = "document.activeElement.getAttribute('aria-selected') === 'true'"
            self.expect(self.ask(f'{active} && {selected}'), f'arrows do not lead to {tab}')
            self.expect(
                self.ask('document.documentElement.scrollWidth <= innerWidth'), f'{tab} is wider than the window'
            )
            self.browser.key('ArrowRight')
        self.ask("document.getElementById('tab-rejected').click()")
        reasons = '<i>is</i> too low' in self.ask("document.getElementById('main').textContent")
        right = self.n_shown() == len(self.rows) - len(self.kept)
        self.expect(right and reasons, 'the rejected or their reasons are not shown')
        self.ask("document.getElementById('tab-distributions').click()")
        self.expect(self.ask("document.querySelectorAll('.chart svg rect.bar').length > 5"), 'there are no charts')
        self.ask("document.getElementById('tab-images').click()")


DRAWN_OF_CLASSIFIERS = (('cases', 'main figure img'), ('diagonals', 'main rect.bar'), ('curves', 'main polyline'))


def check_classifiers(browser, home, classes, shots):
    "Write the report of a workspace with classifiers, and check what it shows of them; sentences"
    from sgdmix.experiments.report import write_report

    make_folder(home / 'synth' / 'mixing', 60)
    add_classifiers(home, classes)
    page = write_report(home, quiet=True)
    found = []
    for width, height in SIZES:
        browser.size(width, height)
        browser.open(page, DRAWN)
        browser.ask("document.getElementById('tab-classifiers').click()")
        told = browser.ask("document.getElementById('main').textContent")
        count = {name: browser.ask(f'document.querySelectorAll({css!r}).length') for name, css in DRAWN_OF_CLASSIFIERS}
        markup = "document.querySelector('[onerror], [onload], main script, iframe')"
        checks = [
            (all(name in told for name in EVIL), 'a hostile name is not shown as it is'),
            (not browser.ask(f'Boolean({markup})'), 'a name became markup'),
            (count['cases'] == 16, 'pictures of cases are missing'),
            (count['diagonals'] == 2 * len(classes), 'a diagonal is missing'),
            (count['curves'] == 6, 'learning curves are missing'),
            (browser.ask('document.documentElement.scrollWidth <= innerWidth'), 'it is wider than the window'),
            (browser.ask('[...document.images].every(i => i.alt && i.naturalWidth)'), 'a picture or its words lack'),
        ]
        found += [f'classifiers, {width} pixels wide: {sentence}.' for right, sentence in checks if not right]
        found += [f'classifiers, {width} pixels wide: {error}' for error in browser.errors()]
        if shots:
            shots.mkdir(parents=True, exist_ok=True)
            browser.shot(shots / f'classifiers-{width}.png')
    return found


def check_page(browser, rows):
    "Sentences about what does not hold in the page that is open"
    page = Page(browser, rows)
    page.check_names()
    page.check_filters()
    page.check_order()
    page.check_keys()
    page.check_words()
    page.check_sections()
    return page.found + browser.errors()


SCROLL = """(async () => {
  const page = document.documentElement;
  const frame = () => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)));
  document.getElementById('grouped').click();
  scrollTo(0, 0);
  let longest = 0, most = 0;
  const start = performance.now();
  for (let y = 0; y < page.scrollHeight; y += 2500) {
    const before = performance.now();
    scrollTo(0, y);
    await frame();
    longest = Math.max(longest, performance.now() - before);
    most = Math.max(most, document.images.length);
  }
  scrollTo(0, page.scrollHeight);
  await frame();
  await new Promise(r => setTimeout(r, 200));
  const end = [...document.querySelectorAll('.strip')].at(-1);
  const bottom = end && end.getBoundingClientRect().bottom <= innerHeight + 100;
  const seen = bottom && end.querySelector('img').complete;
  scrollTo(0, 0);
  return [(performance.now() - start) / 1000, longest / 1000, most, seen];
})()"""


def check_scrolling(browser, where):
    "Scroll through all images in one list; sentences about what does not hold"
    seconds, longest, most, seen = browser.ask(SCROLL)
    print(
        f'{where}: scrolled through in {seconds:.1f} s, longest step {longest:.2f} s, at most {most} pictures at a time'
    )
    found = [] if seen and most <= 1500 and longest <= 1.5 else ['scrolling fails']
    return found + [f'scrolling: {e}' for e in browser.errors()]


def take_shots(browser, page, folder, name):
    "Pictures of the page in light and dark colours"
    folder.mkdir(parents=True, exist_ok=True)
    for colours in ('light', 'dark'):
        browser.dark(colours == 'dark')
        browser.open(page, DRAWN)
        browser.shot(folder / f'{name}-{colours}.png')
    browser.dark(False)


def check_report(browser, folder, n, limit, shots):
    "Write a report of `n` images and check it in all sizes; sentences about what does not hold"
    from sgdmix.experiments.report import write_report

    rows = make_folder(folder, n)
    start = time.time()
    page = write_report(folder, images=folder / 'real', quiet=True)
    made = time.time() - start
    browser.size(*SIZES[0])
    browser.open(page, DRAWN)
    opened = sorted(browser.open(page, DRAWN) for _ in range(3))[1]
    kib = page.stat().st_size / 1024
    size = f'{kib / 1024:.1f} MiB, {kib / n:.2f} KiB an image'
    print(f'{n} images: written in {made:.1f} s, {size}; opens in {opened:.2f} s')
    found = []
    if opened > limit:
        found.append(f'{n} images take {opened:.1f} s to open, and {limit:.0f} s are allowed')
    for width, height in SIZES:
        where = f'{n} images, {width} pixels wide'
        browser.size(width, height)
        browser.open(page, DRAWN)
        problems = check_page(browser, rows) + check_scrolling(browser, where)
        found += [f'{where}: {p}.' for p in problems]
        if shots:
            take_shots(browser, page, shots, f'{n}-{width}')
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shots', type=Path, help='folder for pictures of the page')
    parser.add_argument('--sizes', default='1000,5000', help='images of the two reports')
    args = parser.parse_args()
    path = find_browser()
    if not path:
        print('SKIPPED: no Chromium or Chrome is here to show the report')
        return 0
    found = []
    with tempfile.TemporaryDirectory() as tmp:
        browser = Browser(path)
        browser.dark(False)
        try:
            species = sorted({row['label'] for row in make_folder(Path(tmp) / 'names', 24)})
            found += check_classifiers(browser, Path(tmp) / 'home', species, args.shots)
            for n, limit in zip(map(int, args.sizes.split(',')), SECONDS):
                found += check_report(browser, Path(tmp) / str(n), n, limit, args.shots)
        except (RuntimeError, OSError, EOFError) as error:
            found.append(str(error))
        finally:
            browser.close()
    print('\n'.join(found) if found else 'The report opens, works by keyboard, and is harmless')
    return int(bool(found))


if __name__ == '__main__':
    sys.exit(main())
