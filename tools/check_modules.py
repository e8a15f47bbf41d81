#!/usr/bin/env python
"""Check the exported package from outside its notebooks.

Every module imports by itself in a fresh interpreter and has all that its __all__ names; `import sgdmix` loads none of
the heavy libraries; ruff finds no undefined name and no star import.
Exit status: 0, or 1 if one of these does not hold.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
lib = config['DEFAULT']['lib_name']
package = root / config['DEFAULT']['lib_path']
heavy = 'torch diffusers transformers fastai matplotlib'.split()

import_all = '''
import importlib, sys
module = importlib.import_module(sys.argv[1])
missing = [n for n in getattr(module, '__all__', []) if not hasattr(module, n)]
if missing: sys.exit(f"__all__ names {', '.join(missing)}, which the module does not have")
'''
import_light = '''
import importlib, sys
importlib.import_module(sys.argv[1])
loaded = [n for n in sys.argv[2:] if n in sys.modules]
if loaded: sys.exit(f"it loads {', '.join(loaded)}")
'''


def run(*args):
    "(did it work, the last lines it printed)"
    r = subprocess.run([sys.executable, *args], cwd=root, text=True, capture_output=True)
    return r.returncode == 0, (r.stdout + r.stderr).strip()[-3000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n-workers', type=int, default=2, help='interpreters at a time (default: 2)')
    args = parser.parse_args()

    names = [
        '.'.join(p.relative_to(package.parent).with_suffix('').parts).removesuffix('.__init__')
        for p in sorted(package.rglob('*.py'))
        if 'assets' not in p.relative_to(package).parts
    ]
    if not names:
        print(f'There is no module in {package.name}/.')
        return 1
    checks = {f'import {n}': ['-W', 'ignore', '-c', import_all, n] for n in names}
    checks[f'import {lib} is light'] = ['-W', 'ignore', '-c', import_light, lib, *heavy]
    checks['ruff'] = ['-m', 'ruff', 'check', '--no-cache', '--select', 'F821,F403', str(package)]
    with ThreadPoolExecutor(args.n_workers) as pool:
        results = dict(zip(checks, pool.map(lambda c: run(*c), checks.values())))
    bad = {k: text for k, (ok, text) in results.items() if not ok}
    for what, text in bad.items():
        print(f'{what} failed:\n{text}\n')
    print(f'{len(names)} modules: {len(checks) - len(bad)} checks hold, {len(bad)} do not.')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
