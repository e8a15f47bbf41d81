#!/usr/bin/env python
"""Attack the reading of images with cases that hypothesis makes up, and count them.

Each case makes a folder, runs `sgdmix_split` on it in this process, and looks at what comes out: exit code 0 with the
right class and split of every image, or exit code 2 with a sentence; never an exception, never a file outside the
workspace. What is known to be readable must be read. Kinds: images (modes, depths, sizes, formats, EXIF, damage,
bombs), trees (layouts, names, wrappers, litter), lists (columns, separators, endings, splits, damage) and objects
(labels and pictures from Python).
Exit status: 0, or 1 if there is a finding.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

from sgdmix.cli import main  # noqa: E402
from sgdmix.core import InputError, load_image, read_json  # noqa: E402
from sgdmix.data.foreign import label_of, picture_of  # noqa: E402
from sgdmix.data.table import ImageTable  # noqa: E402

FINDINGS = []


def found(kind, text):
    "Record a finding"
    FINDINGS.append(f'{kind}: {text}')


@contextlib.contextmanager
def sandbox():
    "A folder for one case, which must not change but for the workspace `out`"
    folder = Path(tempfile.mkdtemp(prefix='attack-'))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def files_in(folder):
    "All files below a folder apart from the workspace, with their sizes"
    found = {}
    for at, _, names in os.walk(folder):
        if Path(at) != folder / 'out' and folder / 'out' not in Path(at).parents:
            found.update({f'{at}/{name}': os.lstat(f'{at}/{name}').st_size for name in names})
    return found


def split(kind, box, *args):
    "The exit code of `sgdmix_split` on `box/in`, what it said, and the rows of the split"
    before = files_in(box)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            rc = main(['sgdmix_split', str(box / 'in'), '--out', str(box / 'out'), *args])
    except SystemExit as e:
        rc = e.code
    except BaseException as e:
        found(kind, f'{type(e).__name__}: {e}; {sorted(before)[:8]}')
        return None, '', []
    if rc not in (0, 2) or (rc == 2 and not err.getvalue().strip()):
        found(kind, f'exit code {rc} without a sentence; {err.getvalue()!r}')
    if files_in(box) != before:
        found(kind, f'files outside the workspace: {set(files_in(box)) ^ set(before)}')
    rows = read_json(box / 'out' / 'split.json')['rows'] if rc == 0 else []
    return rc, err.getvalue(), rows


def noise(seed, size=(12, 9)):
    "A picture of its own for each seed"
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def write(path, seed, **kwargs):
    "Save a picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path, 'PNG', **kwargs)


# ---- images

MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'F', 'I;16')
FORMATS = {
    'PNG': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I', 'I;16'),
    'TIFF': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'F', 'I;16'),
    'JPEG': ('L', 'RGB', 'CMYK', 'YCbCr'),
    'WEBP': ('RGB', 'RGBA'),
    'BMP': ('1', 'L', 'P', 'RGB'),
    'GIF': ('1', 'L', 'P'),
    'PPM': ('1', 'L', 'RGB', 'I;16'),
    'JPEG2000': ('L', 'RGB', 'RGBA'),
    'AVIF': ('RGB', 'RGBA'),
    'ICO': ('RGBA',),
    'TGA': ('L', 'RGB', 'RGBA'),
}
SUFFIX = dict(PNG='.png', TIFF='.tif', JPEG='.jpg', WEBP='.webp', BMP='.bmp', GIF='.gif', PPM='.ppm', JPEG2000='.jp2')
SUFFIX |= dict(AVIF='.avif', ICO='.ico', TGA='.tga')
DAMAGE = ('none', 'none', 'cut', 'flip', 'exif', 'junk exif', 'no suffix', 'odd suffix', 'empty', 'text', 'bomb')


def picture(mode, size, depth, seed):
    "A picture of a mode; of more than 8 bits with values up to 2**depth"
    img = noise(seed, size)
    if mode in ('I', 'I;16', 'F'):
        a = np.asarray(img.convert('L')).astype(np.float64) / 255
        a.flat[0] = 1
        a *= 2 ** min(depth, 31 if mode == 'I' else 16) - 1
        kind = {'I': np.int32, 'I;16': np.uint16, 'F': np.float32}[mode]
        return Image.fromarray(a.astype(kind))
    return img.convert(mode)


def bomb():
    "A PNG file that claims to be huge"

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')


@st.composite
def images(draw):
    fmt = draw(st.sampled_from(sorted(FORMATS)))
    return dict(
        fmt=fmt,
        mode=draw(st.sampled_from(FORMATS[fmt])),
        size=(draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        depth=draw(st.sampled_from([8, 10, 12, 14, 16])),
        orientation=draw(st.integers(0, 9)),
        damage=draw(st.sampled_from(DAMAGE)),
        at=draw(st.floats(0, 1)),
        seed=draw(st.integers(0, 2**32)),
    )


def attack_image(case):
    "One odd image among good ones"
    fmt, damage = case['fmt'], case['damage']
    img = picture(case['mode'], case['size'], case['depth'], case['seed'])
    f = io.BytesIO()
    options = {}
    if damage == 'exif' and fmt in ('JPEG', 'PNG', 'TIFF', 'WEBP'):
        exif = Image.Exif()
        exif[0x0112] = case['orientation']
        options = dict(exif=exif)
    if damage == 'junk exif' and fmt in ('JPEG', 'PNG', 'WEBP'):
        options = dict(exif=b'Exif\0\0' + np.random.default_rng(case['seed']).bytes(40))
    try:
        img.save(f, fmt, **options)
    except Exception:
        return  # Pillow cannot make this one
    data = f.getvalue()
    at = int(case['at'] * (len(data) - 1))
    name = 'x' + SUFFIX[fmt]
    data = dict(
        cut=data[:at], flip=data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :], empty=b'', text=b'hello, bird'
    ).get(damage, data)
    if damage == 'bomb':
        name, data = 'x.png', bomb()
    name = {'no suffix': 'x', 'odd suffix': 'x.download'}.get(damage, name)
    if fmt in ('TGA', 'ICO') and name in ('x', 'x.download'):
        return  # these have no signature
    with sandbox() as box:
        for c in 'ab':
            for i in range(2):
                write(box / 'in' / c / f'{i}.png', ord(c) * 10 + i)
        path = box / 'in' / 'a' / name
        path.write_bytes(data)
        rc, err, rows = split('images', box)
        names = {n: label for n, label, _ in rows}
        sound = damage in ('none', 'exif', 'junk exif', 'no suffix', 'odd suffix')
        if sound and (rc != 0 or names.get(f'a/{name}') != 'a'):
            found('images', f'a sound image was not read: {case} {err}')
        if rc == 2 and f'a/{name}' not in err:
            found('images', f'the broken file is not named: {case} {err}')
        if rc == 2 and split('images', box, '--on_broken', 'skip')[0] != 0:
            found('images', f'a broken file cannot be skipped: {case}')
        if rc == 0 and sound and f'a/{name}' in names:
            seen = np.asarray(load_image(path))
            if (
                seen.max() < 128
                and np.asarray(noise(case['seed'], case['size'])).max() > 200
                and case['mode'][0] in 'IF'
            ):
                found('images', f'black: {case} {seen.max()}')
            if (
                damage == 'exif'
                and options
                and fmt in ('PNG', 'WEBP', 'BMP')
                and case['mode'] == 'RGB'
                and fmt == 'PNG'
            ):
                img.getexif()[0x0112] = case['orientation']
                if not np.array_equal(seen, np.asarray(ImageOps.exif_transpose(img))):
                    found('images', f'not upright: {case}')


# ---- trees

WORDS = dict(
    train='train Train TRAIN training trn train_images 01_train train2017'.split(),
    valid='val Valid VALIDATION dev valid_set 02-val val2017'.split(),
    test='test Test TESTING holdout hold-out tst 03_test'.split(),
)
CLASSES = ['wren', 'Blue jay', 'US$ 1', 'a_b^{2}', '鸟', '🐦', '<b>&', "l'oiseau", '-rf', 'CON', '007', 'x' * 90, 'é']
BAD_CLASSES = ['a\nb', ' ', 'Wren', 'ï\udce9', 'a..b']
LITTER = [
    '.DS_Store',
    'Thumbs.db',
    '__MACOSX/a/._1.png',
    '.ipynb_checkpoints/1.png',
    'README.md',
    'notes.txt',
    '.git/x.png',
]


@st.composite
def trees(draw):
    return dict(
        layout=draw(st.sampled_from(['classes', 'splits', 'classes of splits'])),
        classes=draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True)),
        bad=draw(st.sampled_from(['', '', '', *BAD_CLASSES])),
        names={s: draw(st.sampled_from(w)) for s, w in WORDS.items()},
        parts=draw(st.sampled_from([('train',), ('train', 'test'), ('train', 'valid', 'test'), ('train', 'valid')])),
        wrap=draw(st.sampled_from(['', '', 'dataset', 'my photos', 'images', 'a/b'])),
        deep=draw(st.sampled_from(['', '', 'sub', '2019/may'])),
        litter=draw(st.lists(st.sampled_from(LITTER), max_size=3, unique=True)),
        n=draw(st.integers(1, 3)),
        link=draw(st.booleans()),
    )


def attack_tree(case):
    "A folder in a layout that people use"
    with sandbox() as box:
        top = box / 'in' / case['wrap'] if case['wrap'] else box / 'in'
        truth, seed = {}, 0
        classes = [*case['classes'], *([case['bad']] if case['bad'] else [])]
        for split_name in case['parts'] if case['layout'] != 'classes' else ('train',):
            for c in classes:
                s = case['names'][split_name]
                where = {'classes': [c], 'splits': [s, c], 'classes of splits': [c, s]}[case['layout']]
                for i in range(case['n']):
                    path = top.joinpath(*where, case['deep'], f'{split_name}{i}.png')
                    try:
                        write(path, seed)
                    except OSError:
                        return
                    seed += 1
                    truth[path.relative_to(top).as_posix()] = (c, split_name)
        for name in case['litter']:
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'litter')
        if case['link']:
            os.symlink(top, top / classes[0] / 'round') if (top / classes[0]).is_dir() else None
        rc, err, rows = split('trees', box)
        if rc == 0 and not case['bad']:
            got = {name: (label, s) for name, label, s in rows}
            held = case['layout'] == 'classes' or set(case['parts']) != {'train', 'valid', 'test'}
            same = {n: v[0] for n, v in got.items()} == {n: v[0] for n, v in truth.items()}
            kept = all(got.get(n, (0, 0))[1] == s for n, (_, s) in truth.items() if s != 'train')
            if not same or not (kept and (held or got == truth)):
                found('trees', f'wrong labels or splits: {case} {got}')
        if rc == 2 and not case['bad']:
            found('trees', f'refused: {case} {err}')
        if rc == 0 and case['bad'] in ('a\nb', ' ', 'a..b', 'ï\udce9'):
            found('trees', f'a bad class was read: {case} {rows[:3]}')


@st.composite
def jumbles(draw):
    parts = ['train', 'Test', 'val', 'images', 'labels', 'masks', 'a', 'b', 'data', '.x', 'é', '$', 'eval']
    files = ['1.png', '2.png', '3.jpg', 'x.txt', 'l.csv', 'm.json', 'x.xml', 'y', 'z.heic']
    path = st.tuples(st.lists(st.sampled_from(parts), max_size=4), st.sampled_from(files))
    return draw(st.lists(path, min_size=1, max_size=12))


def attack_jumble(case):
    "Any tree at all: a sentence, or labels that are names of folders"
    with sandbox() as box:
        (box / 'in').mkdir()
        for i, (folders, file) in enumerate(case):
            path = (box / 'in').joinpath(*folders, file)
            try:
                if path.suffix in ('.png', '.jpg', ''):
                    write(path, i)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text('file,label\n1,a\n2,b\n' if path.suffix == '.csv' else '{"a": [1]}')
            except OSError:
                continue
        rc, err, rows = split('jumbles', box)
        odd = [row for row in rows if row[1] not in row[0].split('/') and 'l.csv' not in str(case)]
        if odd:
            found('jumbles', f'labels of nowhere: {case} {odd}')


# ---- lists


@st.composite
def lists(draw):
    rows = draw(st.integers(4, 9))
    return dict(
        name=draw(st.sampled_from('file filename image path image_id img_name id Image-ID file_name'.split())),
        label=draw(st.sampled_from('label class target category species breed class_name labels'.split())),
        split=draw(st.sampled_from([None, None, 'split', 'Set', 'subset', 'data set'])),
        words={s: draw(st.sampled_from(w)) for s, w in WORDS.items()},
        sep=draw(st.sampled_from(',;\t|')),
        end=draw(st.sampled_from(['\n', '\r\n', '\r'])),
        mark=draw(st.booleans()),
        suffix=draw(st.sampled_from(['as it is', 'none', 'another'])),
        folder=draw(st.sampled_from(['', '', 'images', 'img/deep'])),
        spelled=draw(st.sampled_from(['relative', 'name', 'elsewhere', 'backslashes'])),
        extra=draw(st.booleans()),
        quoted=draw(st.booleans()),
        labels=draw(
            st.lists(
                st.sampled_from(['wren', '007', 'None', 'NA', 'US$', 'Blue jay', '鸟']), min_size=rows, max_size=rows
            )
        ),
        damage=draw(st.sampled_from(['none', 'none', 'none', 'cut', 'flip', 'gap', 'twice', 'gone'])),
        at=draw(st.floats(0, 1)),
        direct=draw(st.booleans()),
    )


def cell(text, case):
    return f'"{text}"' if case['quoted'] else text


def attack_list(case):
    "Images in one folder, and a list of their classes"
    with sandbox() as box:
        truth, lines = {}, []
        header = [
            case['name'],
            *(['size'] if case['extra'] else []),
            case['label'],
            *([case['split']] if case['split'] else []),
        ]
        lines.append(case['sep'].join(cell(h, case) for h in header))
        for i, label in enumerate(case['labels']):
            relative = '/'.join(filter(None, [case['folder'], f'img{i:02d}.png']))
            write(box / 'in' / relative, i)
            split_name = ('train', 'train', 'valid', 'test')[i % 4]
            name = dict(relative=relative, name=f'img{i:02d}.png', elsewhere=f'/home/me/{relative}').get(
                case['spelled'], relative.replace('/', '\\')
            )
            name = {'none': name[:-4], 'another': name[:-4] + '.jpg'}.get(case['suffix'], name)
            row = [
                name,
                *(['3'] if case['extra'] else []),
                label,
                *([case['words'][split_name]] if case['split'] else []),
            ]
            lines.append(case['sep'].join(cell(x, case) for x in row))
            truth[relative] = (label, split_name)
        lines += lines[-1:] if case['damage'] == 'twice' else []
        lines += [lines[-1].replace('img', 'none')] if case['damage'] == 'gone' else []
        if case['damage'] == 'gap':
            lines[-1] = lines[-1].replace(case['labels'][-1], '')
        data = ('\ufeff' * case['mark'] + case['end'].join(lines) + case['end']).encode()
        at = int(case['at'] * (len(data) - 1))
        if case['damage'] in ('cut', 'flip'):
            data = data[:at] + (b'' if case['damage'] == 'cut' else bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        (box / 'in' / 'list.csv').write_bytes(data)
        if case['direct']:
            (box / 'in').rename(box / 'photos')
            os.symlink(box / 'photos' / 'list.csv', box / 'in')
            shutil.copytree(box / 'photos', box, dirs_exist_ok=True, ignore=shutil.ignore_patterns('list.csv'))
        rc, err, rows = split('lists', box)
        if case['damage'] == 'none':
            enough = len({label for i, label in enumerate(case['labels'])}) > 1
            trained = {label for i, label in enumerate(case['labels']) if not case['split'] or i % 4 < 2}
            if rc == 2 and enough and trained == set(case['labels']):
                found('lists', f'refused: {case} {err}')
            got = {Path(n).name: (label, s) for n, label, s in rows}
            wanted = {Path(n).name: v for n, v in truth.items()}
            if rc == 0 and {n: v[0] for n, v in got.items()} != {n: v[0] for n, v in wanted.items()}:
                found('lists', f'wrong labels: {case} {got}')
            if rc == 0 and case['split'] and got != wanted:
                found('lists', f'wrong splits: {case} {got}')
        elif rc == 0:  # labels that the list does not give
            known = {label for label, _ in truth.values()}
            if case['damage'] != 'flip' and case['damage'] != 'cut' and not {label for _, label, _ in rows} <= known:
                found('lists', f'labels of nowhere: {case} {rows}')


# ---- objects

VALUES = st.one_of(
    st.integers(-3, 6),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.none(),
    st.text(max_size=4),
    st.sampled_from(['wren', 'jay', 'owl', '1', '01', '-1', '1.0']),
    st.lists(st.integers(0, 3), max_size=3),
    st.binary(max_size=3),
)


@st.composite
def objects(draw):
    shape = draw(
        st.sampled_from([(5, 7), (3, 5, 7), (5, 7, 3), (1, 5, 7), (4, 5, 7), (2, 5, 7), (0, 5, 3), (1, 3, 5, 7), (7,)])
    )
    kind = draw(st.sampled_from(['uint8', 'float32', 'float64', 'int64', 'uint16', 'bool', 'complex64', 'object']))
    low, high = draw(st.sampled_from([(0, 1), (0, 255), (-1, 1), (-2.1, 2.6), (0, 65535), (0, 0)]))
    return dict(
        label=draw(VALUES),
        shape=shape,
        kind=kind,
        low=low,
        high=high,
        hole=draw(st.integers(0, 9)),
        seed=draw(st.integers(0, 99)),
    )


def attack_object(case):
    "A label and a picture as Python objects"
    names = ['wren', 'jay', 'owl']
    for known in (names, None):
        try:
            label = label_of(case['label'], known)
        except InputError:
            continue
        value = case['label']
        right = value == label if isinstance(value, str) and (not known or value in known) else None
        if right is None:
            number = int(value)
            right = label == (known[number] if known else str(value if isinstance(value, bool) else number))
            right = right and number >= 0
        if not right:
            found('objects', f'wrong label: {case["label"]!r} is {label!r}')
    rng = np.random.default_rng(case['seed'])
    a = rng.uniform(case['low'], case['high'], case['shape'])
    if case['hole'] == 0 and a.size:
        a.flat[0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        a = a.astype(case['kind']) if case['kind'] != 'object' else a.astype(object)
    try:
        seen = np.asarray(picture_of(a)).astype(float)
    except InputError:
        return
    wanted = a.astype(float) * (255 if a.dtype.kind in 'fb' else 1)
    while wanted.ndim > 2 and 1 in (wanted.shape[0], wanted.shape[-1]):
        wanted = wanted[0] if wanted.shape[0] == 1 else wanted[..., 0]
    if wanted.shape != seen.shape:
        wanted = wanted.transpose(1, 2, 0)
    if np.abs(wanted - seen).max() > 0.5:
        found('objects', f'wrong pixels: {case}')


def attack_dataset(case):
    "A small data set with one odd row"
    good = [(noise(i), i % 2) for i in range(4)]
    rng = np.random.default_rng(case['seed'])
    a = rng.uniform(case['low'], case['high'], case['shape'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        odd = a.astype(case['kind'])
    with sandbox() as box:
        before = files_in(box)
        try:
            table = ImageTable.from_dataset([*good, (odd, case['label'])], box / 'out')
        except InputError:
            table = None
        if files_in(box) != before:
            found('datasets', f'files outside the folder: {case}')
        if table is not None and (len(table) != 5 or table.df['label'].tolist()[:4] != ['0', '1', '0', '1']):
            found('datasets', f'wrong labels: {case}')


KINDS = dict(
    images=(images(), attack_image),
    trees=(trees(), attack_tree),
    jumbles=(jumbles(), attack_jumble),
    lists=(lists(), attack_list),
    objects=(objects(), attack_object),
    datasets=(objects(), attack_dataset),
)


def attack(kind: str, cases: int, seed: int = 0) -> dict:
    "Run so many cases of a kind: how many there were, and the findings"
    strategy, run_case = KINDS[kind]
    n = 0
    del FINDINGS[:]

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def cases_of(case):
        nonlocal n
        n += 1
        try:
            run_case(case)
        except Exception as e:
            found(kind, f'{type(e).__name__}: {e} of {case}')

    import hypothesis

    hypothesis.seed(seed)(cases_of)()
    return dict(kind=kind, cases=n, findings=list(FINDINGS))


def main_attack():
    "Attack, print, and record"
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('kinds', nargs='*', default=list(KINDS), help=', '.join(KINDS))
    parser.add_argument('--cases', type=int, default=120, help='cases of each kind')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--record', help='file of JSON lines to append the counts to')
    args = parser.parse_args()
    total, bad = 0, 0
    for kind in args.kinds or KINDS:
        start = time.time()
        res = attack(kind, args.cases, args.seed)
        total, bad = total + res['cases'], bad + len(res['findings'])
        print(f'{kind}: {res["cases"]} cases, {len(res["findings"])} findings, {time.time() - start:.0f} s', flush=True)
        for text in dict.fromkeys(res['findings'][:12]):
            print('   ', ascii(text)[:1500])
        if args.record:
            command = f'tools/attack_input.py {kind} --cases {args.cases} --seed {args.seed}'
            line = dict(kind=f'input: {kind}', cases=res['cases'], findings=len(res['findings']), command=command)
            with open(args.record, 'a') as f:
                f.write(json.dumps(line) + '\n')
    print(f'{total} cases, {bad} findings')
    return int(bad > 0)


if __name__ == '__main__':
    sys.exit(main_attack())
