#!/usr/bin/env python
"""Let one, two and three processes do the same work on the CPU, and write what is equal and how long it took.

Mixing with masks that are found; the same while one of three processes is killed, and the next start; refining;
personalising; and mixing of a larger set with a core for each process. Lines are written to the file that the
argument names, nbs/results/shared_work.jsonl by default.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file
from sgdmix.core import append_line, hash_file, hash_of
from sgdmix.synthesis.manifest import rows_of

root = Path(__file__).resolve().parent.parent
MIXING = ['synth', '--method', 'mixing', '--saliency', 'spectral+grabcut', '--multiplier', '20']
LARGE = [*MIXING[:-1], '80']
REFINING = ['synth', '--method', 'sgdmix', '--saliency', 'attention', '--multiplier', '1', '--strengths', '.5']
NUMBERS = dict(one=(1, False), two=(2, False), three=(3, False))
CORES = {'one, on a core': (1, True), 'two, on a core each': (2, True)}
PERSONALISING = ['personalize', '--steps', '20', '--batch_size', '8']


def start(words, out, n: int = 1, pinned: bool = False):
    "Start a command with `n` processes; pinned, each has a core of its own and no other"
    own = ['-m', 'sgdmix', *words, '--out', str(out), '--device', 'cpu', '--quiet']
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(n)]
    pin = ['sh', '-c', 'exec taskset -c ${LOCAL_RANK:-0} "$@"', 'sh', sys.executable]
    if n == 1:
        command = [*(pin if pinned else [sys.executable]), *own]
    else:
        command = [*launch, *(['--no-python', *pin] if pinned else []), *own]
    environment = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process) -> float:
    "Wait for a command; the seconds that it took since now"
    begun = time.perf_counter()
    _, said = process.communicate()
    if process.returncode:
        sys.exit(said.decode())
    return round(time.perf_counter() - begun, 1)


def begin(folder) -> Path:
    "A workspace of drawn birds"
    subprocess.run(
        [sys.executable, '-m', 'sgdmix', 'split', '--out', str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    return Path(folder)


def contents(out, method) -> str:
    "A hash of a set: its manifest, and the bytes of every image"
    train = out / 'synth' / method / 'train'
    return hash_of([hash_file(train / 'metadata.jsonl'), *(hash_file(p) for p in sorted(train.rglob('*.png')))])


def share_synthesis(folder, words, method, cases) -> list:
    "A set made by several numbers of processes: whether it is the same, and the seconds of each"
    lines, sets = [], {}
    for name, (n, pinned) in cases.items():
        out = begin(folder / hash_of(name))
        if method == 'sgdmix':
            finish(start(['personalize', '--steps', '2'], out))
        seconds = finish(start(words, out, n, pinned))
        sets[name] = contents(out, method)
        n_images = len(rows_of(out / 'synth' / method))
        same = sets[name] == next(iter(sets.values()))
        lines.append(dict(work=method, processes=name, images=n_images, seconds=seconds, same=same))
    return lines


def kill_one(folder) -> dict:
    "A set whose making loses one of three processes halfway, and is gone on with by two"
    undisturbed, out = begin(folder / 'undisturbed'), begin(folder / 'killed')
    finish(start(MIXING, undisturbed))
    process, parts = start(MIXING, out, 3), out / 'synth' / 'mixing' / '.parts'
    while len(rows_of(out / 'synth' / 'mixing') if parts.is_dir() else ()) < 1500:
        time.sleep(0.05)
    children = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    process.communicate()
    left = len(rows_of(out / 'synth' / 'mixing'))
    finish(start(MIXING, out, 2))
    same = contents(out, 'mixing') == contents(undisturbed, 'mixing')
    return dict(work='mixing', processes='one of three killed, then two', images=left, same=same)


def share_personalisation(folder) -> list:
    "A personalisation by one process, and by two with half of each batch: the largest difference of a weight"
    lines, weights = [], {}
    for n, name in ((1, 'one'), (2, 'two')):
        out = begin(folder / name)
        seconds = finish(start(PERSONALISING, out, n))
        weights[n] = load_file(out / 'model' / 'pytorch_lora_weights.safetensors')
        differences = [float((weights[n][k] - weights[1][k]).abs().max()) for k in weights[1]]
        size = max(float(w.abs().max()) for w in weights[1].values())
        line = dict(
            work='personalising', processes=name, seconds=seconds, largest_difference=round(max(differences), 8)
        )
        lines.append(line | dict(largest_weight=round(size, 4)))
    return lines


if __name__ == '__main__':
    if len(sys.argv) > 2 or sys.argv[1:2] in (['-h'], ['--help']):
        sys.exit(__doc__)
    path = Path(sys.argv[1]) if len(sys.argv) == 2 else root / 'nbs' / 'results' / 'shared_work.jsonl'
    folder = Path(tempfile.mkdtemp())
    path.unlink(missing_ok=True)
    lines = share_synthesis(folder / 'mixing', MIXING, 'mixing', NUMBERS)
    lines += [kill_one(folder)]
    lines += share_synthesis(folder / 'refining', REFINING, 'sgdmix', NUMBERS)
    lines += share_personalisation(folder / 'personalising')
    lines += share_synthesis(folder / 'large', LARGE, 'mixing', CORES)
    for line in lines:
        append_line(path, line)
        print(line)
