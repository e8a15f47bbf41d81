#!/usr/bin/env python
"""Make README.md from nbs/index.ipynb. No cell is run: the outputs are those the notebook was saved with.

Pictures among the outputs go to nbs/index_files/; links to files beside the notebook are rewritten so that they work
from the repository's root. With --check nothing is written.
Exit status: 0, or 1 if a link leads nowhere, or with --check if README.md is not what the notebook says.
"""

import argparse
import os
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, rm_export, rm_header_dash, strip_ansi
from execnb.nbio import nb2str
from traitlets.config import Config

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
nbs = root / config['DEFAULT']['nbs_path']
index = nbs / config['DEFAULT']['readme_nb']
pictures = nbs / f'{index.stem}_files'
head = (
    f'<!-- Made from {index.relative_to(root).as_posix()} by tools/readme.py: change the notebook, not this file. -->'
)

_quarto = re.compile(r'^#\|\s*([\w-]+)\s*:\s*(\S*).*\n?', re.M)
_link = re.compile(r'(\]\(|\b(?:src|href)=")(?!\w+:|#|/)([^)"#\s]+)')
_fence = re.compile(r'(^```.*?^```|`[^`\n]+`)', re.M | re.S)


def quarto_options(cell):
    "Obey `echo: false` and `output: false`, and drop the other `#| key: value` lines"
    if cell.cell_type != 'code':
        return
    options = {k: v.lower() for k, v in _quarto.findall(cell.source)}
    cell.source = _quarto.sub('', cell.source)
    if options.get('output') == 'false':
        cell.outputs = []
    if options.get('echo') == 'false':
        cell.metadata['tags'] = ['no-source']
    cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']


def relink(text, lost):
    "Links beside the notebook become links from the root; those that lead nowhere are added to `lost`"

    def one(m):
        target = (nbs / m[2]).resolve()
        if not target.exists():
            lost.append(m[2])
            return m[0]
        return m[1] + Path(os.path.relpath(target, root)).as_posix()

    return ''.join(part if i % 2 else _link.sub(one, part) for i, part in enumerate(_fence.split(text)))


def make():
    "(the text of README.md, {picture: bytes}, links that lead nowhere)"
    procs = [strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, clean_magics, hide_]
    nb = nbformat.reads(nb2str(NBProcessor(index, procs=procs, process=True).nb), as_version=4)
    nb.metadata['language_info'] = dict(name='python')
    lost = []
    for cell in nb.cells:
        quarto_options(cell)
        if cell.cell_type == 'markdown':
            cell.source = relink(cell.source, lost)
    nb.cells = [c for c in nb.cells if c.source.strip()]
    exporter = MarkdownExporter(
        config=Config(
            NbConvertBase=dict(
                display_data_priority=[
                    'text/markdown',
                    'image/svg+xml',
                    'image/png',
                    'image/jpeg',
                    'text/html',
                    'text/plain',
                ]
            ),
            TagRemovePreprocessor=dict(enabled=True, remove_input_tags=['no-source']),
        )
    )
    text, resources = exporter.from_notebook_node(
        nb, dict(unique_key=index.stem, output_files_dir=pictures.relative_to(root).as_posix())
    )
    text = re.sub(r'<style.*?</style>\s*', '', text, flags=re.S)
    text = re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', text, flags=re.M)).strip()
    return f'{head}\n\n{text}\n', {root / k: v for k, v in resources['outputs'].items()}, lost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if README.md differs')
    args = parser.parse_args()
    if not index.exists():
        print(f'There is no {index.relative_to(root)}.')
        return 1
    text, files, lost = make()
    for link in lost:
        print(f'{index.name} links to {link}, which does not exist.')
    if lost:
        return 1

    wanted = files | {root / 'README.md': text.encode()}
    there = [root / 'README.md', *pictures.glob('*')]
    stale = [p for p in there if p not in wanted]
    changed = [p for p in wanted if not p.exists() or p.read_bytes() != wanted[p]]
    if args.check:
        for p in changed + stale:
            print(f'{p.relative_to(root)} is not what {index.name} says: run python tools/readme.py.')
        return 1 if changed or stale else 0
    for p in stale:
        p.unlink()
    for p in changed:
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(wanted[p])
        print(f'wrote {p.relative_to(root)}')
    (root / 'README.md').touch()  # nbdev takes a README older than its notebook for stale
    return 0


if __name__ == '__main__':
    sys.exit(main())
