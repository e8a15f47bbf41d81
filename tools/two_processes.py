#!/usr/bin/env python
"""Train with one process and with two on the CPU, and write what is equal and what is not as lines of RESULTS.

Three small trainings on drawn birds: the network for photographs, whose batch norms are fixed; the small network with
batch norms; and the same with a batch mixer. Without an argument the file is nbs/results/processes.jsonl.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from sgdmix.core import append_line, hash_of, read_json, write_json
from sgdmix.data.birds import make_birds
from sgdmix.training.learner import MixedBatches, train_classifier

root = Path(__file__).resolve().parent.parent
BIRDS = dict(n_per_class=16, n_valid=5, n_test=10, bias=0.5, seed=0)
TRAININGS = {
    'fixed norms': dict(preset='photographs', size=64, epochs=2),
    'batch norms': dict(epochs=12),
    'batch mixer': dict(epochs=12, mixer='cutmix'),
}
batches = []  # of the training in this process
create_batch = MixedBatches.create_batch


def watched(self, idxs):
    "`create_batch`, with a note of the training batches"
    if self.shuffle:
        batches.append(list(idxs))
    return create_batch(self, idxs)


def child(folder, name):
    "One training in this process; what is to be compared goes to files"
    torch.set_num_threads(1)
    MixedBatches.create_batch = watched
    rank, folder = int(os.environ.get('RANK', 0)), Path(folder)
    table = make_birds(folder / f'birds-{rank}', **BIRDS)
    always = dict(augment='trivial', device='cpu', tests=('test',), checkpoint=folder / 'state')
    result = train_classifier(table, **always, **TRAININGS[name])
    result.update(steps=len(batches), batches=hash_of(batches))
    write_json(folder / f'result-{rank}.json', result)


def last_weights(folder):
    "The weights after the last epoch"
    tensors = load_file(folder / 'state' / read_json(folder / 'state' / 'state.json')['file'])
    return {name: t for name, t in tensors.items() if name.startswith('model/') and t.is_floating_point()}


def run(n, folder, name):
    "A training with `n` processes; the results of all, and the weights"
    folder.mkdir()
    command = [sys.executable, '-W', 'ignore']
    if n > 1:
        command += ['-m', 'torch.distributed.run', '--nproc_per_node', str(n), '--master_port', '29517']
    environment = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    subprocess.run([*command, __file__, str(folder), name], check=True, env=environment)
    return [read_json(folder / f'result-{k}.json') for k in range(n)], last_weights(folder)


def same_valid(first, second) -> bool:
    "Whether two processes measured the same on validation images after every epoch"
    return all(a['valid_loss'] == b['valid_loss'] for a, b in zip(first['history'], second['history']))


def compared(name, one, two, weights_1, weights_2) -> dict:
    "What is equal between a training in one process and in two, and what is not"
    largest = max(float((weights_1[k] - weights_2[k]).abs().max()) for k in weights_1)
    row = dict(training=name, largest_difference=round(largest, 8))
    for k, result in ((1, one), (2, two[0])):
        last = result['history'][-1]
        row.update({f'valid_{k}': round(last['valid'], 4), f'test_{k}': round(result['last']['test'], 4)})
        row.update({f'loss_{k}': round(last['valid_loss'], 6), f'steps_{k}': result['steps']})
    row['processes_agree'] = two[0]['last'] == two[1]['last'] and same_valid(*two)
    row['same_batches'] = one['batches'] == two[0]['batches'] == two[1]['batches']
    return row


if __name__ == '__main__':
    if len(sys.argv) == 3:
        child(*sys.argv[1:])
        sys.exit()
    if len(sys.argv) > 2 or sys.argv[1:2] in (['-h'], ['--help']):
        sys.exit(__doc__)
    path = Path(sys.argv[1]) if len(sys.argv) == 2 else root / 'nbs' / 'results' / 'processes.jsonl'
    folder = Path(tempfile.mkdtemp())
    path.unlink(missing_ok=True)
    for k, name in enumerate(TRAININGS):
        (one,), weights_1 = run(1, folder / f'{k}-1', name)
        two, weights_2 = run(2, folder / f'{k}-2', name)
        append_line(path, compared(name, one, two, weights_1, weights_2))
        print(path.read_text().splitlines()[-1], flush=True)
