#!/usr/bin/env python
"""Attack every stage by crashes, and hold what a restart makes against an undisturbed run.

A stage runs in a forked process on the smallest settings. It is stopped by SIGKILL or SIGTERM at a random moment, by
a full disk, by a folder that is read-only, or by a second process in the same stage; or a file is removed before it
starts. Then the same command is given again. It must end well, and leave the same files, the same manifest and the same
lines of results as an undisturbed run. A refusal must be one sentence with exit code 2, and never a traceback.

Full disks and read-only folders need to mount a tmpfs, which takes root; without it a limit on the size of files stands
for the full disk. Findings are printed with the command that repeats them.
Exit status: 0, or 1 if there was a finding.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

SMALL = ['--quiet']
MIXED = ['--method', 'mixing', '--multiplier', '1', '--saliency', 'gradcam']
REFINED = ['--method', 'sgdmix', '--multiplier', '1', '--saliency', 'gradcam', '--strengths', '.1', '--batch_size', '3']
STAGES = dict(  # stage -> command, in the order of a run; OUT and PHOTOS stand for the folders
    split=['sgdmix_split', 'PHOTOS', '--out', 'OUT', '--model', 'embedded', '--metaclass', 'bird', '--shots', '3'],
    saliency=['sgdmix_saliency', '--out', 'OUT', '--method', 'gradcam', '--epochs', '2', '--preset', 'default', *SMALL],
    personalize=['sgdmix_personalize', '--out', 'OUT', '--steps', '6', '--batch_size', '2', *SMALL],
    mixing=['sgdmix_synth', '--out', 'OUT', *MIXED, *SMALL],
    sgdmix=['sgdmix_synth', '--out', 'OUT', *REFINED, *SMALL],
    train=['sgdmix_train', '--out', 'OUT', '--method', 'mixing', '--epochs', '2', '--seeds', '2', *SMALL],
    report=['sgdmix_report', 'OUT', *SMALL],
    experiment=['experiment', 'OUT'],
)
VOLATILE = ('seconds', 'images_per_second', 'time', 'date', 'memory')  # values that differ between equal runs
UNSTABLE_FILES = ('report.html', 'clock.json')


def import_all():
    "Import what the stages need once, so that a forked process starts at once"
    import diffusers  # noqa: F401
    import fastai.vision.all  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import sgdmix.cli  # noqa: F401
    import sgdmix.experiments.report  # noqa: F401
    import sgdmix.experiments.runs  # noqa: F401
    import sgdmix.experiments.workspace  # noqa: F401
    import sgdmix.training.learner  # noqa: F401

    torch.set_num_threads(1)


def draw_photos(folder):
    "Six small pictures of each of two birds"
    from sgdmix.core import rng_for, save_image
    from sgdmix.data.birds import BACKGROUNDS, draw_bird

    for i, name in enumerate(('Azure Jay', 'Ivory Heron')):
        for k in range(6):
            bird = draw_bird(name, BACKGROUNDS[(i + k) % 6], rng_for(0, name, k), size=64)[0]
            save_image(bird, folder / name / f'{k}.png')


# ---- one process


def run_stage(command):
    "Run a command in this process; its exit code"
    from sgdmix.cli import main

    if command[0] == 'experiment':
        return run_conditions(Path(command[1]) / 'experiments')
    return main(command)


def run_conditions(out):
    "Two conditions of an experiment"
    from sgdmix.core import InputError
    from sgdmix.experiments.runs import Config, run

    tiny = dict(per_class=1, n_eval=1, explain=1, steps=1, epochs=1, multiplier=1)
    try:
        for method in ('baseline', 'mixing'):
            run(Config(method=method, saliency='spectral', **tiny), out, device='cpu')
    except InputError as e:
        print(f'experiment: {e}', file=sys.stderr)
        return 2
    return 0


def start(command, log, limit=None):
    "Start a command in a forked process; its pid"
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = list(command)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = run_stage(list(command))
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def wait_for(pid, seconds=600):
    "The exit code of a process, negative for a signal; it is killed if it takes too long"
    end = time.time() + seconds
    while time.time() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 'hang'


# ---- what a stage has left


def steady(value):
    "A JSON value without what differs between equal runs"
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if not any(word in k for word in VOLATILE)}
    return [steady(v) for v in value] if isinstance(value, list) else value


def content(path):
    "What a file says, in a form that is the same for equal runs"
    if path.name in UNSTABLE_FILES:
        return 'there'
    if path.suffix == '.jsonl':
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted(json.dumps(steady(line), sort_keys=True) for line in lines)
    if path.suffix == '.json':
        record = json.loads(path.read_text())
        if isinstance(record, dict) and 'whole' in record and 'wall' in record:
            return 'a stopwatch'
        return json.dumps(steady(record), sort_keys=True)
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def snapshot(out):
    "All files of a workspace apart from hidden ones: name -> content"
    files = {}
    for path in sorted(out.rglob('*')):
        name = path.relative_to(out).as_posix()
        if path.is_file() and '/.' not in f'/{name}':
            files[name] = content(path)
    return files


def difference(have, want):
    "How two snapshots differ, in a few words; empty if they do not"
    parts = [f'missing {name}' for name in want if name not in have]
    parts += [f'too much {name}' for name in have if name not in want]
    parts += [f'differs {name}' for name in want if name in have and have[name] != want[name]]
    return '; '.join(parts[:4])


class Bench:
    "A folder in which stages are attacked, and the states before and after each of them"

    def __init__(self, work, seed, log=print):
        self.work, self.rng, self.log = Path(work), random.Random(seed), log
        self.photos, self.out, self.logfile = self.work / 'photos', self.work / 'disk' / 'out', self.work / 'log.txt'
        self.before, self.after, self.seconds = {}, {}, {}
        self.disk = self.work / 'disk'
        self.disk.mkdir(parents=True)
        draw_photos(self.photos)

    def command(self, stage):
        "The words of a stage's command"
        places = dict(OUT=str(self.out), PHOTOS=str(self.photos))
        return [places.get(word, word) for word in STAGES[stage]]

    def run_all(self, wanted):
        "Undisturbed runs, in order, up to the last that is wanted; the state before and after each"
        last = max(list(STAGES).index(stage) for stage in wanted)
        for stage in list(STAGES)[: last + 1]:
            kept = self.work / 'before' / stage
            if self.out.exists():
                shutil.copytree(self.out, kept)
            self.before[stage] = kept
            started = time.time()
            code = wait_for(start(self.command(stage), self.logfile))
            self.seconds[stage] = time.time() - started
            if code != 0:
                sys.exit(f'The undisturbed {stage} ends with {code}:\n{self.logfile.read_text()[-3000:]}')
            self.after[stage] = snapshot(self.out)
            self.log(f'{stage}: {self.seconds[stage]:.1f} s, {len(self.after[stage])} files')

    def restore(self, stage):
        "The state before a stage"
        if self.out.exists():
            shutil.rmtree(self.out)
        if self.before[stage].exists():
            shutil.copytree(self.before[stage], self.out)
        self.logfile.write_text('')

    def verdict(self, stage, may_refuse=False):
        "Run the stage once more, undisturbed; what is wrong then, in a few words"
        code = wait_for(start(self.command(stage), self.logfile))
        text = self.logfile.read_text()
        if 'Traceback' in text:
            return f'traceback: {text.strip().splitlines()[-1][:200]}'
        if code == 2 and may_refuse:
            return ''
        if code != 0:
            return f'ends with {code}: {(text.strip().splitlines() or [""])[-1][:200]}'
        return difference(snapshot(self.out), self.after[stage])


# ---- the attacks: each returns what is wrong, or an empty string


def kill(bench, stage):
    "One to three kills at random moments"
    bench.restore(stage)
    for _ in range(bench.rng.choice((1, 1, 2, 3))):
        pid = start(bench.command(stage), bench.logfile)
        time.sleep(bench.rng.uniform(0, 1.05 * bench.seconds[stage]))
        os.kill(pid, bench.rng.choice((signal.SIGKILL, signal.SIGTERM)))
        wait_for(pid)
    return bench.verdict(stage)


def refused_well(bench, code):
    "What is wrong with a refusal, or with an end that is none"
    text = bench.logfile.read_text()
    if 'Traceback' in text:
        return f'traceback: {text.strip().splitlines()[-1][:200]}'
    if code not in (0, 2):
        return f'ends with {code}: {(text.strip().splitlines() or [""])[-1][:200]}'
    return ''


def full_disk(bench, stage):
    "A disk that is full at a random point, and then has room"
    bench.restore(stage)
    if not can_mount():
        limit = bench.rng.choice((100, 2000, 10_000, 50_000, 300_000))
        wrong = refused_well(bench, wait_for(start(bench.command(stage), bench.logfile, limit)))
        return wrong or bench.verdict(stage)
    with mounted(bench, stage):
        wrong = refused_well(bench, wait_for(start(bench.command(stage), bench.logfile)))
        remount(bench.disk, 'size=400m')
        return wrong or bench.verdict(stage)


def read_only(bench, stage):
    "A folder that cannot be written, and then can"
    bench.restore(stage)
    if not can_mount():
        return None
    with mounted(bench, stage, 'size=400m'):
        remount(bench.disk, 'ro')
        wrong = refused_well(bench, wait_for(start(bench.command(stage), bench.logfile)))
        remount(bench.disk, 'rw')
        return wrong or bench.verdict(stage)


def file_removed(bench, stage):
    "A file of an earlier stage that is gone: made again, or refused with a sentence"
    bench.restore(stage)
    files = [p for p in bench.out.rglob('*') if p.is_file() and '/.' not in p.relative_to(bench.work).as_posix()]
    if not files:
        return None
    chosen = bench.rng.choice(files)
    chosen.unlink()
    name = chosen.relative_to(bench.out)
    code = wait_for(start(bench.command(stage), bench.logfile))
    wrong = refused_well(bench, code)
    if wrong or code == 2:
        return wrong and f'{name} removed: {wrong}'
    want = dict(bench.after[stage])
    have = snapshot(bench.out)
    if str(name) not in have:
        want.pop(str(name), None)
    if name.name == 'results.jsonl':  # earlier results are gone with it
        have.pop('results.jsonl', None)
        want.pop('results.jsonl', None)
        have.pop('table.md', None)
        want.pop('table.md', None)
    changed = difference(have, want)
    return changed and f'{name} removed: {changed}'


def two_at_once(bench, stage):
    "Two processes that run the same stage: both end well, or one is told who is at work"
    bench.restore(stage)
    first = start(bench.command(stage), bench.logfile)
    time.sleep(bench.rng.uniform(0, 0.5 * bench.seconds[stage]))
    second = start(bench.command(stage), bench.logfile)
    codes = [wait_for(first), wait_for(second)]
    text = bench.logfile.read_text()
    if 'Traceback' in text:
        return f'traceback: {text.strip().splitlines()[-1][:200]}'
    if codes.count(0) + codes.count(2) < 2 or codes == [2, 2]:
        return f'end with {codes}: {(text.strip().splitlines() or [""])[-1][:200]}'
    if 2 in codes and 'Another process is at work' not in text:
        return f'refused without a word on who is at work: {text[-200:]}'
    return difference(snapshot(bench.out), bench.after[stage])


ATTACKS = dict(kill=kill, full_disk=full_disk, read_only=read_only, file_removed=file_removed, two_at_once=two_at_once)


# ---- a small disk


def can_mount():
    "Whether a tmpfs can be mounted here"
    return os.getuid() == 0 and shutil.which('mount') is not None and not os.environ.get('NO_MOUNT')


def remount(disk, options):
    subprocess.run(['mount', '-o', f'remount,{options}', str(disk)], check=True)


class mounted:
    "A small disk in the place of the bench's folder, with what lies there; random room if no size is given"

    def __init__(self, bench, stage, options=None):
        self.bench, self.stage, self.options = bench, stage, options

    def __enter__(self):
        bench = self.bench
        aside = bench.work / 'aside'
        if bench.out.exists():
            shutil.copytree(bench.out, aside)
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=400m', 'tmpfs', str(bench.disk)], check=True)
        if aside.exists():
            shutil.copytree(aside, bench.out)
            shutil.rmtree(aside)
        used = shutil.disk_usage(bench.disk).used
        room = self.bench.rng.choice((4096, 40_960, 200_000, 800_000, 2_000_000))
        remount(bench.disk, self.options or f'size={used + room}')

    def __exit__(self, *error):
        subprocess.run(['umount', str(self.bench.disk)], check=True)


def attack(bench, cases, stages, kinds, findings, counts, say=print):
    "Attack stages in turn; adds to the findings, and to the counts by kind and stage"
    for k in range(cases):
        stage, kind = stages[k % len(stages)], kinds[(k // len(stages)) % len(kinds)]
        try:
            wrong = ATTACKS[kind](bench, stage)
        except subprocess.CalledProcessError as e:
            wrong = f'the bench: {e}'
        if wrong is None:
            continue
        counts[f'{kind} {stage}'] += 1
        if wrong:
            findings.append(f'{kind} {stage}: {re.sub(re.escape(str(bench.work)), "...", wrong)}')
            say(f'[{k + 1}/{cases}] FINDING {findings[-1]}', flush=True)
        elif (k + 1) % 10 == 0:
            say(f'[{k + 1}/{cases}] {len(findings)} findings', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=210, help='how many attacks')
    parser.add_argument('--seed', type=int, default=0, help='of the random moments')
    parser.add_argument('--stages', default=','.join(STAGES), help='which stages, with commas between them')
    parser.add_argument('--kinds', default='kill,kill,kill,full_disk,read_only,file_removed,two_at_once', help='which')
    parser.add_argument('--results', help='file of JSON lines to append the counts to')
    args = parser.parse_args()
    import_all()
    findings = []
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(work, args.seed)
        stages = args.stages.split(',')
        bench.run_all(stages)
        started = time.time()
        counts = Counter()
        try:
            attack(bench, args.cases, stages, args.kinds.split(','), findings, counts)
        except KeyboardInterrupt:
            print('stopped: what was done until here counts')
    by_kind = Counter()
    for name, n in counts.items():
        by_kind[name.split()[0]] += n
    total = sum(counts.values())
    print(f'{total} attacks in {time.time() - started:.0f} s: {dict(by_kind)}; {len(findings)} findings')
    if args.results:
        from sgdmix.core import append_line

        command = ' '.join(['python', 'tools/attack_crash.py', *sys.argv[1:]])
        append_line(
            args.results,
            dict(kind='crash', cases=total, findings=len(findings), by_kind=by_kind, by_stage=counts, command=command),
        )
    sys.exit(bool(findings))


if __name__ == '__main__':
    main()
