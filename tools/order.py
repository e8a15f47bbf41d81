#!/usr/bin/env python
"""Check that the numbers of the notebooks are the order of their dependencies.

An exported cell may import only modules of notebooks with a smaller number, and only of its own package or of packages
on a lower floor; `masks`, `diffusion` and `mixers` work on tensors and never import `data`. Two notebooks with one
number, a module that two notebooks export, and an import of a module that none exports are errors too, each told in one
sentence.
Exit status: 0, or 1 if there is an error.
"""

import argparse
import ast
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from nbdev.process import NBProcessor

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
lib, nbs = config['DEFAULT']['lib_name'], root / config['DEFAULT']['nbs_path']


FLOORS = dict(core=1, hashes=1, refusals=1, claims=1, tensors=1, processes=1)
FLOORS |= dict(backbones=2, networks=2, show=2, data=2, probe=2, embedded=3, diffusion=4)
FLOORS |= dict(masks=5, synthesis=5, methods=6, mixers=6, training=7, theory=8, experiments=8, commands=9, cli=9)
FLOORS |= dict(__init__=10, __main__=10)
NO_TABLES = ('masks', 'diffusion', 'mixers')  # packages that take tensors
DRAWINGS = ('data.fractals',)  # pictures without a table, which anybody may draw


def misplaced(module, target):
    "Why `module` may not import `target`, or None"
    package, other = module.split('.')[0], target.split('.')[0]
    if package == other:
        return None
    for name in (package, other):
        if name not in FLOORS:
            return f'the package {name} has no floor: enter it in FLOORS of tools/order.py'
    if FLOORS[other] > FLOORS[package]:
        return f'{other} is on a higher floor'
    if package in NO_TABLES and other == 'data' and target not in DRAWINGS:
        return f'{package} works on tensors and imports no data'
    return None


def number(path):
    "The number a notebook's name begins with, or None: `03a_parallel` is (3, 'a')"
    m = re.match(r'(\d+)([a-z]?)_', path.name)
    return m and (int(m[1]), m[2])


def read(path):
    "(the modules a notebook exports, its exported cells as (module, cell))"
    cells = [c for c in NBProcessor(path).nb.cells if c.cell_type == 'code' and c.directives_]
    default = next((c.directives_['default_exp'][0] for c in cells if c.directives_.get('default_exp')), None)
    exported = [
        ((args or [default])[0], c)
        for c in cells
        for d, args in c.directives_.items()
        if d in ('export', 'exports', 'exporti')
    ]
    return {m for m, _ in exported if m} | ({default} - {None}), exported


def imports(tree, module):
    "What the code of `module` imports from the package, as lists of candidates: `from .a import b` is [a.b, a]"
    package = module.split('.')[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(lib + '.'):
                    yield [alias.name.partition('.')[2]]
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package) + 1:
                yield ['.' * node.level + (node.module or '')]
                continue
            parts = (node.module or '').split('.') if node.module else []
            if node.level:
                base = package[: len(package) + 1 - node.level] + parts
            elif parts[0] == lib:
                base = parts[1:]
            else:
                continue
            for alias in node.names:
                yield ['.'.join(base + [alias.name]), '.'.join(base)]


def comes_later(other, path):
    "Whether the notebook `other` has a larger number than `path`, or the same"
    return other != path and bool(number(path) and number(other)) and number(other) >= number(path)


def check(paths):
    "Yield a sentence for each error"
    home, numbers, exported = {}, {}, []  # module -> its notebook; number -> its notebook
    for path in paths:
        n, (modules, cells) = number(path), read(path)
        if n is None and modules:
            yield f'{path.name} exports {min(modules)} but its name does not begin with a number.'
        if n is not None and n in numbers:
            yield f'{numbers[n].name} and {path.name} have one number.'
        numbers.setdefault(n, path)
        for m in sorted(modules):
            if m in home:
                yield f'{home[m].name} and {path.name} both export {lib}.{m}.'
            home.setdefault(m, path)
        if any(m is None for m, _ in cells):
            yield f'{path.name} has an exported cell but no default_exp.'
        exported += [(path, m, c) for m, c in cells if m]
    for path, module, cell in exported:
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as e:
            yield f"{path.name}: the exported cell {cell.get('id')} is not Python: {e.msg}."
            continue
        for candidates in imports(tree, module):
            target = next((c for c in candidates if c in home), None)
            if target is None:
                if candidates[-1] == '':  # from sgdmix import ...
                    if not candidates[0].startswith('__'):
                        yield f'{path.name} imports {lib}.{candidates[0]} by the front door: import it from its module.'
                    continue
                name = candidates[-1] or candidates[0]
                yield f"{path.name} imports {name if name[0] == '.' else f'{lib}.{name}'}, which no notebook exports."
            elif home[target] == path and target == module:
                yield f'{path.name} imports {lib}.{target}, which is its own module.'
            elif comes_later(home[target], path):
                yield f'{path.name} imports {lib}.{target}, which comes only in {home[target].name}.'
            else:
                why = misplaced(module, target)
                if why:
                    yield f'{path.name} imports {lib}.{target} into {lib}.{module}: {why}.'


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    paths = sorted(p for p in nbs.rglob('*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(nbs).parts))
    if not paths:
        print(f'There is no notebook in {nbs.name}/.')
        return 1
    errors = list(dict.fromkeys(check(paths)))
    for e in errors:
        print(e)
    if not errors:
        print(f'{len(paths)} notebooks: every import names an earlier one, on a lower floor.')
    return 1 if errors else 0


if __name__ == '__main__':
    sys.exit(main())
