#!/usr/bin/env python
"""Run notebooks from top to bottom and keep what their cells show.

Each notebook runs in a kernel of its own, with its folder as the working directory and this checkout on the import
path. Cells with a flag of `tst_flags` in settings.ini are not run and keep the outputs they have; `--flags` runs them.
A notebook whose cell fails is left as it was. Exit status: 0, or 1 if a notebook failed.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
flags = config['DEFAULT']['tst_flags'].split()


def is_run(cell, skip):
    "Whether a cell is code to run: not flagged, and not the last one, which exports"
    if cell.cell_type != 'code' or not cell.source.strip() or 'nbdev_export' + '(' in cell.source:
        return False
    directives = re.findall(r'^#\s*\|\s*(\S+)', cell.source, re.M)
    return not any(flag in directives for flag in skip)


def shrink(cell, colours=256):
    "Write the figures of a cell with a palette, which makes them several times smaller"
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        if 'image/png' in data:
            image = Image.open(io.BytesIO(base64.b64decode(data['image/png']))).convert('RGB')
            small = io.BytesIO()
            image.quantize(colours, dither=Image.Dither.NONE).save(small, 'png', optimize=True)
            data['image/png'] = base64.b64encode(small.getvalue()).decode()


def fit(nb, limit=300 * 1024):
    "Give the figures fewer colours in a notebook that is larger than it may be"
    for colours in (192, 128):
        if len(nbformat.writes(nb).encode()) > limit:
            for cell in nb.cells:
                shrink(cell, colours)


def tidy(cell):
    "Drop what libraries write to stderr, and the names of temporary folders, which differ from run to run"
    cell.outputs = [o for o in cell.get('outputs', []) if o.get('name') != 'stderr']
    folder = re.compile(re.escape(tempfile.gettempdir()) + r'/\w+')
    for output in cell.outputs:
        if 'text' in output:
            output['text'] = folder.sub('TMP', output['text'])


def execute(path, skip, timeout):
    "Run one notebook and write it back"
    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(nb, timeout=timeout, resources={'metadata': {'path': str(path.parent)}})
    with client.setup_kernel():
        for index, cell in enumerate(nb.cells):
            if is_run(cell, skip):
                client.execute_cell(cell, index)
                tidy(cell)
                shrink(cell)
    fit(nb)
    nbformat.write(nb, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='+', type=Path, help='the notebooks to run')
    parser.add_argument('--flags', default='', help='flags whose cells are run too, such as "slow gpu"')
    parser.add_argument('--timeout', type=int, default=600, help='seconds that one cell may take (default: 600)')
    args = parser.parse_args()

    os.environ.update(IN_TEST='1', HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')  # one thread: the same numbers anywhere
    os.environ['PYTHONPATH'] = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    skip = [flag for flag in flags if flag not in args.flags.split()]
    failed = 0
    for path in args.notebooks:
        start = time.time()
        try:
            execute(path.resolve(), skip, args.timeout)
            print(f'{path.name}: {time.time() - start:.0f} s')
        except CellExecutionError as error:
            failed += 1
            print(f'{path.name} failed after {time.time() - start:.0f} s:\n{error}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
