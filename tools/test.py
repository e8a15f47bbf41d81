#!/usr/bin/env python
"""Run every notebook of nbs/ as a test.

Each notebook runs in a process of its own, with its folder as the working directory, the repository on the import
path and IN_TEST=1. A cell is skipped if it carries a flag of `tst_flags` in settings.ini or `#| eval: false`; skipped
cells are counted and named. The last line is `N passed, M failed, K skipped`: notebooks, notebooks, cells.
Exit status: 0, or 1 if a notebook failed or if nothing ran.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']
nbs = root / settings['nbs_path']

# ---- in the worker: one notebook


def skip_reason(cell, skip_flags):
    "Why this code cell is not run: a flag, `eval: false`, or None"
    directives = cell.directives_ or {}
    if directives.get('eval:', [''])[:1] in (['false'], ['False']):
        return 'eval: false'
    return next((flag for flag in skip_flags if flag in directives), None)


def explain(exc, cell):
    "The failing cell and the traceback from its first line on"
    frames = traceback.TracebackException.from_exception(exc)
    inside = [i for i, f in enumerate(frames.stack) if '/IPython/core/' in f.filename.replace(os.sep, '/')]
    if inside:
        frames.stack = traceback.StackSummary.from_list(frames.stack[inside[-1] + 1 :])
    source = '\n'.join(f'    | {line}' for line in cell.source.strip().splitlines())
    return f"failed in the cell with id {cell.get('id')}:\n{source}\n{''.join(frames.format())}"


def run_notebook(path, report_path, skip_flags):
    "Run the notebook; `report_path` always says how far it has come, so that a killed worker has left word"
    from execnb.shell import CaptureShell
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor, nb_lang

    nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    report = dict(ran=0, skipped=Counter(), done=False, error=None)

    def save(**changes):
        report.update(changes)
        report_path.write_text(json.dumps(report))

    whole = str(getattr(nb, 'frontmatter_', {}).get('skip_exec', '')).lower() == 'true' or nb_lang(nb) != 'python'
    os.chdir(path.parent)
    shell = CaptureShell(path)
    for cell in nb.cells:
        if cell.cell_type != 'code' or not cell.source.strip() or 'nbdev_export' + '(' in cell.source:
            continue
        reason = 'skip_exec' if whole else skip_reason(cell, skip_flags)
        if reason:
            report['skipped'][reason] += 1
            continue
        save(cell=cell.get('id'), ran=report['ran'] + 1)
        shell.cell(cell)
        if shell.exc:
            return save(error=explain(shell.exc, cell))
    save(done=True)


# ---- in the parent: all of them


class Worker:
    "A process that runs one notebook, at most `timeout` seconds long"

    def __init__(self, path, folder, timeout, skip_flags, threads):
        self.path, self.timeout, self.start = path, timeout, time.time()
        self.report_path = folder / f'{len(list(folder.iterdir()))}.json'
        self.log = tempfile.TemporaryFile('w+', errors='replace')
        env = os.environ | dict(IN_TEST='1', PYTHONUNBUFFERED='1')
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), env.get('PYTHONPATH')]))
        for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
            env.setdefault(name, str(threads))
        self.report_path.write_text('{}')
        self.process = subprocess.Popen(
            [sys.executable, __file__, '--worker', str(path), str(self.report_path), *skip_flags],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self):
        "End the worker and whatever it started"
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def result(self):
        "None while it runs, else a dict(path, time, ran, skipped, error)"
        late = time.time() - self.start > self.timeout
        if self.process.poll() is None and not late:
            return None
        self.kill()
        report = dict(ran=0, skipped={}, done=False, error=None) | json.loads(self.report_path.read_text() or '{}')
        if not report['done'] and not report['error']:
            how = (
                f'was killed after {self.timeout:g} s' if late else f'ended with exit status {self.process.returncode}'
            )
            self.log.seek(0)
            report['error'] = f"{how} in the cell with id {report.get('cell')}\n{self.log.read()[-4000:]}"
        return dict(path=self.path, time=time.time() - self.start, **report)


def run_all(paths, n_workers, **kwargs):
    "Run `paths` with `n_workers` at a time and yield their results as they come"
    todo, workers = list(paths), []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while todo or workers:
                while todo and len(workers) < n_workers:
                    workers.append(Worker(todo.pop(0), Path(folder), **kwargs))
                for worker in list(workers):
                    if result := worker.result():
                        workers.remove(worker)
                        yield result
                time.sleep(0.05)
        finally:
            for worker in workers:
                worker.kill()


def find_notebooks(names, file_re):
    "The notebooks to run; like nbdev, none whose name or folder begins with `_` or `.`"
    found = [Path(n).resolve() for n in names] or sorted(nbs.rglob('*.ipynb'))
    if names:
        return found
    return [
        p for p in found if re.search(file_re, p.name) and not any(part[0] in '_.' for part in p.relative_to(nbs).parts)
    ]


def sentence(skipped):
    "What was skipped, and why, in words"
    if not skipped:
        return 'No cell was skipped.'
    return f"Cells skipped: {', '.join(f'{n} {flag}' for flag, n in sorted(skipped.items()))}."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', help='run these only (default: all of nbs/)')
    parser.add_argument('--flags', default='', help='flags to run although tst_flags names them, as in "slow gpu"')
    parser.add_argument('--file-re', default='', help='run the notebooks whose name this regular expression finds')
    parser.add_argument('--n-workers', type=int, default=2, help='notebooks at a time (default: 2)')
    parser.add_argument('--timeout', type=float, default=900, help='seconds before a notebook is killed (default: 900)')
    parser.add_argument('--timing', action='store_true', help='list the notebooks by time, slowest first')
    args = parser.parse_args()
    if args.n_workers < 1:
        parser.error('--n-workers is at least 1')

    unknown = set(args.flags.split()) - set(settings['tst_flags'].split())
    if unknown:
        parser.error(f"tst_flags in settings.ini does not name {', '.join(sorted(unknown))}")
    missing = [n for n in args.notebooks if not Path(n).is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    skip_flags = [f for f in settings['tst_flags'].split() if f not in args.flags.split()]
    paths = find_notebooks(args.notebooks, args.file_re)
    threads = max(1, (os.cpu_count() or 1) // args.n_workers)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    results, skipped = [], Counter()
    for r in run_all(paths, args.n_workers, timeout=args.timeout, skip_flags=skip_flags, threads=threads):
        results.append(r)
        skipped.update(r['skipped'])
        r['state'] = 'FAILED' if r['error'] else 'ok' if r['ran'] else 'no run'
        name, n_skipped = r['path'].name, sum(r['skipped'].values())
        counts = f'cells run: {r["ran"]:3}   skipped: {n_skipped:2}'
        print(f'{r["state"]:6}  {name:36} {r["time"]:6.1f} s   {counts}', flush=True)
        if r['error']:
            print(f"\n{r['path'].name}: {r['error']}", flush=True)

    if args.timing and results:
        print('\nSlowest first:')
        for r in sorted(results, key=lambda r: -r['time']):
            print(f"{r['time']:7.1f} s  {r['path'].name}")
    passed, failed = (sum(r['state'] == s for r in results) for s in ('ok', 'FAILED'))
    idle = [r['path'].name for r in results if r['state'] == 'no run']
    print()
    if failed:
        print('Failed:', ', '.join(sorted(r['path'].name for r in results if r['state'] == 'FAILED')))
    if idle:
        print('Without a cell to run, and so not counted:', ', '.join(sorted(idle)))
    if not passed + failed:
        print(f'No notebook of {nbs.name}/ ran.')
    print(sentence(skipped))
    print(f'{passed} passed, {failed} failed, {sum(skipped.values())} skipped')
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.path[0] = str(root)
    if sys.argv[1:2] == ['--worker']:
        run_notebook(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
