#!/usr/bin/env python
"""Ask a browser about the report: does it open quickly, work by keyboard, and stay harmless whatever a class is called?

Needs Chromium or Chrome (or a path to one in the variable CHROMIUM); says SKIPPED where there is none. Talks to it over a
pipe, in the language of its developer tools, with the standard library alone. `--shots FOLDER` keeps pictures of the page.
Exit status: 0, or 1 with a sentence for each thing that does not hold.
"""

import argparse, base64, fcntl, json, os, select, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

EVIL = [
    '<img src=x onerror=alert(1)>',
    '</script><script>alert(2)</script>',
    '"><svg onload=alert(3)>',
    "Ivory & 'Heron'",
    '<!--',
]
KEYS = dict(Escape=27, Enter=13, Tab=9, ArrowLeft=37, ArrowUp=38, ArrowRight=39, ArrowDown=40)


def find_browser():
    "Path of a browser, or None"
    names = [
        os.environ.get('CHROMIUM'),
        'chromium',
        'chromium-browser',
        'google-chrome',
        'google-chrome-stable',
        'chrome',
    ]
    return next((p for n in names if n and (p := shutil.which(n))), None)


class Browser:
    "One page of a headless browser"

    flags = (
        '--headless --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run '
        '--no-default-browser-check --hide-scrollbars --remote-debugging-pipe'
    ).split() + ['--no-sandbox'] * (os.name == 'posix' and os.geteuid() == 0)

    def __init__(self, path):
        self.home, self.session, self.n, self.rest, self.events = tempfile.mkdtemp(), None, 0, b'', []
        far = lambda fd: fcntl.fcntl(
            fd, fcntl.F_DUPFD_CLOEXEC, 20
        )  # out of the way of 3 and 4, which the browser reads and writes
        (r1, w1), (r2, w2) = os.pipe(), os.pipe()
        ends = [far(f) for f in (r1, w1, r2, w2)]
        for f in (r1, w1, r2, w2):
            os.close(f)
        child_reads, self.out, self.into, child_writes = ends

        def ready():
            os.setsid()
            os.dup2(child_reads, 3)
            os.dup2(child_writes, 4)

        self.process = subprocess.Popen(
            [path, *self.flags, f'--user-data-dir={self.home}', 'about:blank'],
            preexec_fn=ready,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        page = lambda: [t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page']
        while not page():
            time.sleep(0.05)
        self.session = self.call('Target.attachToTarget', targetId=page()[0]['targetId'], flatten=True)['sessionId']
        for part in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{part}.enable')

    def read(self, until):
        while b'\0' not in self.rest:
            if not select.select([self.into], [], [], max(0, until - time.time()))[0]:
                raise TimeoutError('the browser does not answer')
            if not (got := os.read(self.into, 1 << 20)):
                raise EOFError('the browser has gone')
            self.rest += got
        line, _, self.rest = self.rest.partition(b'\0')
        message = json.loads(line)
        if 'method' in message:
            self.events.append(message)
        if message.get('method') == 'Page.javascriptDialogOpening':
            self.send('Page.handleJavaScriptDialog', accept=True)
        return message

    def send(self, method, **params):
        self.n += 1
        text = json.dumps(
            dict(id=self.n, method=method, params=params, **(dict(sessionId=self.session) if self.session else {}))
        )
        os.write(self.out, text.encode() + b'\0')
        return self.n

    def call(self, method, limit=60, **params):
        n, until = self.send(method, **params), time.time() + limit
        while (m := self.read(until)).get('id') != n:
            pass
        if 'error' in m:
            raise RuntimeError(m['error'])
        return m['result']

    def ask(self, js):
        "Value of a JavaScript expression, or of what it promises"
        r = self.call('Runtime.evaluate', expression=js, awaitPromise=True, returnByValue=True, userGesture=True)
        if 'exceptionDetails' in r:
            raise RuntimeError(r['exceptionDetails']['exception'].get('description', r))
        return r['result'].get('value')

    def wait(self, js, limit=5.0):
        "Whether an expression becomes true in time"
        until = time.time() + limit
        while not (ok := self.ask(f'!!({js})')) and time.time() < until:
            time.sleep(0.02)
        return ok

    def open(self, path):
        "Seconds until the report is drawn"
        self.events.clear()
        t = time.time()
        self.call('Page.navigate', url=Path(path).resolve().as_uri())
        if not self.wait("document.readyState === 'complete' && performance.getEntriesByName('shown').length", 20):
            raise RuntimeError(f'The report is not drawn. {" ".join(self.errors())}')
        return time.time() - t

    def size(self, w, h):
        self.call('Emulation.setDeviceMetricsOverride', width=w, height=h, deviceScaleFactor=1, mobile=w < 500)

    def dark(self, on):
        self.call(
            'Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if on else 'light')]
        )

    def key(self, key):
        code = dict(
            key=key,
            code=key if len(key) > 1 else '',
            windowsVirtualKeyCode=KEYS.get(key, 191 if key == '/' else ord(key.upper()[0])),
        )
        text = '\r' if key == 'Enter' else key if len(key) == 1 else None
        self.call('Input.dispatchKeyEvent', type='keyDown', **code, **(dict(text=text) if text else {}))
        self.call('Input.dispatchKeyEvent', type='keyUp', **code)

    def type(self, text):
        for c in text:
            self.key(c)

    def shot(self, path):
        time.sleep(0.3)
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def errors(self):
        "What went to the console, dialogs, and addresses other than the file's own"
        bad = [
            e
            for e in self.events
            if e['method'] in ('Runtime.exceptionThrown', 'Page.javascriptDialogOpening')
            or e['method'] == 'Log.entryAdded'
            and e['params']['entry']['level'] == 'error'
            or e['method'] == 'Runtime.consoleAPICalled'
            and e['params']['type'] in ('error', 'warning')
        ]
        urls = {e['params']['request']['url'] for e in self.events if e['method'] == 'Network.requestWillBeSent'}
        return [json.dumps(e['params'])[:300] for e in bad] + [
            f'it asks for {u[:80]}' for u in urls if not u.startswith(('file:', 'data:'))
        ]

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        self.process.wait()
        time.sleep(0.2)
        shutil.rmtree(self.home, ignore_errors=True)


def make_folder(dest, n):
    "A synthetic folder of `n` drawn birds with sources and targets, some rejected, some classes with hostile names; its rows"
    from sgdmix.data.birds import BACKGROUNDS, SPECIES, draw_bird
    from sgdmix.core import hash_of, rng_for, slug, write_json

    rng, rows, classes = rng_for(0, 'report'), [], sorted([*list(SPECIES)[:7], *EVIL])
    species = list(SPECIES)
    for k in range(60):
        p = dest / 'real' / f'{k}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        draw_bird(species[k % 12], BACKGROUNDS[k % 6], rng)[0].save(p)
    for i in range(n):
        c, key = i % len(classes), hash_of(i)
        why = f'cosine {rng.random():.2f} <i>is</i> too low' if i % 20 == 7 else None
        row = dict(
            file_name='' if why else f'{slug(classes[c])}/{key}.png',
            method='sgdmix',
            label=classes[c],
            source=f'{i % 60}.png',
            target=f'{(7 * i + 1) % 60}.png',
            start='mixed',
            prompt=f'a photo of a {classes[c]}',
            negative_prompt='',
            strength=(0.3, 0.5, 0.7)[i % 3],
            seed=0,
            copy=0,
            label_names=[classes[c]],
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
        if not why:
            (p := dest / 'train' / row['file_name']).parent.mkdir(parents=True, exist_ok=True)
            draw_bird(species[c], BACKGROUNDS[i % 6], rng)[0].save(p, compress_level=1)
        rows.append({**row, **({'rejected': why} if why else {})})
    write_json(
        dest / 'synthesis.json',
        dict(
            method='sgdmix',
            settings=dict(size=64, policy='squash', strengths=[0.3, 0.5, 0.7]),
            refiner='model',
            seed=0,
            split='none',
            classes=classes,
            version='0',
        ),
    )
    for name, part in (
        ('train/metadata.jsonl', [r for r in rows if r['file_name']]),
        ('rejected.jsonl', [r for r in rows if not r['file_name']]),
    ):
        (dest / name).write_text(''.join(json.dumps(r) + '\n' for r in part))
    return rows


def check_page(b, rows):
    "Sentences about what does not hold in the page that is open"
    kept = [r for r in rows if r['file_name']]
    text = lambda s: b.ask(f'document.querySelector({s!r})?.textContent')
    n_shown = lambda: int(text('#count').split()[0].replace(',', ''))

    def expect(ok, words):
        if not ok:
            found.append(words)

    found = []
    pick = lambda k, v: b.ask(
        f"(() => {{ const s = document.getElementById({k!r}); s.value = {json.dumps(v)}; s.dispatchEvent(new Event('change')); }})()"
    )
    focus = lambda: b.ask("+document.activeElement.dataset.id")
    first = lambda: b.ask("+document.querySelector('.strip, .tile')?.dataset.id")
    expect(n_shown() == len(kept), f'it counts {n_shown()} images of {len(kept)}')
    # hostile names are text, and nothing else
    b.ask("document.querySelectorAll('.group').forEach(g => g.scrollIntoView())")
    heads = b.ask("[...document.querySelectorAll('.group > h2')].map(h => h.firstChild.data)")
    expect(set(EVIL) <= set(heads), 'a class is missing or its name is not shown as it is')
    expect(
        b.ask(
            "document.scripts.length === 1 && !document.querySelector('[onerror], [onload], main script, main svg[onload], main i b, iframe, object')"
        ),
        'a name became markup',
    )
    # filters and search
    pick('class', str(sorted({r['label'] for r in rows}).index(EVIL[0])))
    expect(n_shown() == sum(r['label'] == EVIL[0] for r in kept), 'the filter by class miscounts')
    pick('class', '')
    pick('strength', '0.5')
    expect(n_shown() == sum(r['strength'] == 0.5 for r in kept), 'the filter by strength miscounts')
    pick('strength', '')
    pick('flag', 'small')
    expect(n_shown() == sum(r['mask_flag'] == 'small' for r in kept), 'the filter by flag miscounts')
    pick('flag', '')
    b.ask('document.activeElement.blur()')
    b.key('/')
    expect(b.ask("document.activeElement.id === 'q'"), '/ does not lead to the search')
    b.type(kept[5]['key'])
    expect(b.wait("/^1 of/.test(document.getElementById('count').textContent)"), 'the search does not find a key')
    b.key('Escape')
    expect(n_shown() == len(kept), 'Esc does not clear the search')
    # sorting, without classes
    b.ask("document.getElementById('grouped').click()")
    pick('sort', 'distance -1')
    b.wait("document.querySelector('.strip')")
    by = sorted(rows, key=lambda r: r['index'])
    far = max(kept, key=lambda r: r['distance'])
    expect(by[first()]['key'] == far['key'], 'the greatest distance does not come first')
    b.ask("document.getElementById('sheet').click()")
    b.wait("document.querySelector('.tile')")
    expect(by[first()]['key'] == far['key'], 'the sheet has another order')
    b.ask("document.getElementById('strips').click(); document.getElementById('grouped').click()")
    pick('sort', 'plan')
    b.wait("document.querySelector('.strip')")
    # keys: arrows among strips, Enter, arrows and Esc in the image
    b.ask("document.querySelector('.strip').focus()")
    one = focus()
    b.key('ArrowDown')
    two = focus()
    b.key('ArrowUp')
    expect(one != two and focus() == one, 'arrows do not move among the strips')
    b.key('Enter')
    expect(b.wait("document.getElementById('box').open"), 'Enter does not open an image')
    b.key('ArrowRight')
    expect(text('.bar-top .muted').startswith('2 of'), 'an arrow does not lead to the next image')
    b.key('Escape')
    expect(
        b.wait(f"!document.getElementById('box').open && +document.activeElement.dataset.id === {two}"),
        'Esc does not close the image, or the focus is lost',
    )
    # names for everything
    expect(
        b.ask(
            "[...document.querySelectorAll('button')].every(e => (e.textContent + (e.getAttribute('aria-label') || '') + [...e.querySelectorAll('img')].map(i => i.alt)).trim())"
        ),
        'a button has no name',
    )
    expect(
        b.ask(
            "[...document.images].every(i => i.hasAttribute('alt')) && [...document.querySelectorAll('select, input')].every(e => e.labels.length)"
        ),
        'a picture or a field has no words',
    )
    # sections by arrow keys; none is wider than the window
    b.ask("document.getElementById('tab-images').focus()")
    tabs = b.ask("[...document.querySelectorAll('[role=tab]')].map(t => t.id)")
    for t in tabs:
        expect(
            b.ask(
                f"document.activeElement.id === {t!r} && document.activeElement.getAttribute('aria-selected') === 'true'"
            ),
            f'arrows do not lead to {t}',
        )
        expect(b.ask('document.documentElement.scrollWidth <= innerWidth'), f'{t} is wider than the window')
        b.key('ArrowRight')
    b.ask("document.getElementById('tab-rejected').click()")
    expect(
        n_shown() == len(rows) - len(kept)
        and '<i>is</i> too low' in b.ask("document.getElementById('main').textContent"),
        'the rejected or their reasons are not shown',
    )
    b.ask("document.getElementById('tab-distributions').click()")
    expect(b.ask("document.querySelectorAll('.chart svg rect.bar').length > 5"), 'there are no charts')
    b.ask("document.getElementById('tab-images').click()")
    return found


def scroll(b):
    "Scroll through all images in one list: (seconds, longest step, most pictures at a time, whether the last image was reached)"
    return b.ask("""(async () => {
      document.getElementById('grouped').click(); scrollTo(0, 0); let longest = 0, most = 0; const t = performance.now(), tick = () => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)));
      for (let y = 0; y < document.documentElement.scrollHeight; y += 2500) { const s = performance.now(); scrollTo(0, y); await tick(); longest = Math.max(longest, performance.now() - s); most = Math.max(most, document.images.length); }
      scrollTo(0, document.documentElement.scrollHeight); await tick(); await new Promise(r => setTimeout(r, 200));
      const end = [...document.querySelectorAll('.strip')].at(-1), seen = end && end.getBoundingClientRect().bottom <= innerHeight + 100 && end.querySelector('img').complete, id = +end.dataset.id; scrollTo(0, 0);
      return [(performance.now() - t)/1000, longest/1000, most, seen, id]; })()""")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shots', type=Path, help='folder for pictures of the page')
    p.add_argument('--sizes', default='1000,5000', help='images of the two reports')
    a = p.parse_args()
    path, found = find_browser(), []
    if not path:
        print('SKIPPED: no Chromium or Chrome is here to show the report')
        return 0
    from sgdmix.experiments.report import write_report

    with tempfile.TemporaryDirectory() as tmp:
        b = Browser(path)
        b.size(1280, 900)
        b.dark(False)
        try:
            for n, most in zip(map(int, a.sizes.split(',')), (2.0, 4.0)):
                d = Path(tmp) / str(n)
                rows = make_folder(d, n)
                t = time.time()
                page = write_report(d, images=d / 'real', quiet=True)
                made = time.time() - t
                b.open(page)
                times = sorted(b.open(page) for _ in range(3))
                kib = page.stat().st_size / 1024
                print(
                    f'{n} images: written in {made:.1f} s, {kib / 1024:.1f} MiB, {kib / n:.2f} KiB an image; opens in {times[1]:.2f} s'
                )
                if times[1] > most:
                    found.append(f'{n} images take {times[1]:.1f} s to open, and {most:.0f} s are allowed')
                for w, h in ((1280, 900), (390, 844)):
                    b.size(w, h)
                    b.open(page)
                    found += [f'{n} images, {w} pixels wide: {f}.' for f in check_page(b, rows) + b.errors()]
                    seconds, longest, at_a_time, seen, last = scroll(b)
                    print(
                        f'{n} images, {w} pixels wide: scrolled through in {seconds:.1f} s, longest step {longest:.2f} s, at most {at_a_time} pictures at a time'
                    )
                    if not seen or at_a_time > 1500 or longest > 1.5:
                        found.append(f'{n} images, {w} pixels wide: scrolling fails')
                    found += [f'{n} images, {w} pixels wide, scrolling: {f}.' for f in b.errors()]
                    if a.shots:
                        a.shots.mkdir(parents=True, exist_ok=True)
                        for dark in (False, True):
                            b.dark(dark)
                            b.open(page)
                            b.shot(a.shots / f'{n}-{w}-{"dark" if dark else "light"}.png')
                        b.dark(False)
                b.size(1280, 900)
        except (RuntimeError, OSError, EOFError) as e:
            found.append(str(e))
        finally:
            b.close()
    print('\n'.join(found) if found else 'The report opens, works by keyboard, and is harmless')
    return int(bool(found))


if __name__ == '__main__':
    sys.exit(main())
