#!/usr/bin/env python
"""Kill a small training with SIGKILL at random moments, start it again, and compare the final weights.

The training has everything that draws random numbers: replaced images, automatic augmentation, a batch mixer, and a
network with dropout. An undisturbed one comes first; it also tells how long an epoch takes.
Exit status: 0, or 1 if the weights or the learning curves differ.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from sgdmix.core import hash_of, read_json, write_json
from sgdmix.data.birds import make_birds
from sgdmix.training.classifiers import read_card
from sgdmix.training.learner import mixed_loader, train_classifier
from sgdmix.training.replacement import MixedDataset


def make_images(folder):
    "Real and synthetic images, drawn"
    birds = make_birds(folder / 'birds', n_per_class=6, n_valid=2, n_test=1, bias=0.95, seed=0)
    return birds, make_birds(folder / 'synthetic', n_per_class=6, n_valid=0, n_test=0, bias=0.2, seed=1)


def train(images, epochs, state, kept, started):
    "The training; its result goes to a file"
    torch.set_num_threads(1)
    birds, synthetic = images
    set_epoch = MixedDataset.set_epoch

    def first_pass(self, epoch):
        started.set()
        set_epoch(self, epoch)

    MixedDataset.set_epoch = first_pass
    result = train_classifier(
        birds,
        synthetic,
        p=0.5,
        arch='mobilenet_v3_small',  # has dropout and batch norms
        size=32,
        epochs=epochs,
        augment='trivial',
        mixer='cutmix',
        keep=kept,
        checkpoint=state,
        device='cpu',
    )
    result.pop('seconds')
    write_json(kept.with_suffix('.json'), result)


def last_epoch(state):
    "The last epoch that was kept, -1 for none"
    return read_json(state / 'state.json')['epoch'] if (state / 'state.json').exists() else -1


def last_weights(state):
    "Hash of the weights after the last epoch"
    tensors = load_file(state / read_json(state / 'state.json')['file'])
    return hash_of([[name, t.tolist()] for name, t in sorted(tensors.items()) if name.startswith('model/')])


def killed(images, epochs, state, kept, after=None):
    "Start the training in a process and kill it so many seconds after its first batch; whether it was still running"
    fork = multiprocessing.get_context('fork')
    started = fork.Event()
    process = fork.Process(target=train, args=(images, epochs, state, kept, started))
    process.start()
    while after is not None and process.is_alive() and not started.wait(0.1):
        pass
    process.join(after)
    running = process.is_alive()
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if not running and process.exitcode:
        sys.exit(f'The training failed with exit code {process.exitcode}.')
    return running


def compare(kills, epochs, seed):
    "Train undisturbed and killed; whether both came to the same"
    folder = Path(tempfile.mkdtemp())
    images = make_images(folder)
    mixed_loader()  # imports fastai, before the processes begin
    killed(images, epochs, folder / 'whole-state', folder / 'whole')
    epoch = read_json(folder / 'whole-state' / 'state.json')['seconds'] / epochs
    print(f'undisturbed: {epochs} epochs of {epoch:.2f} s', flush=True)
    rng, kept = random.Random(seed), []
    while len(kept) < kills and killed(images, epochs, folder / 'state', folder / 'kept', rng.uniform(0, 2 * epoch)):
        kept.append(last_epoch(folder / 'state') + 1)
    killed(images, epochs, folder / 'state', folder / 'kept')
    print(f'killed {len(kept)} times, when {", ".join(map(str, kept))} epochs were kept')
    hashes = [last_weights(folder / name) for name in ('whole-state', 'state')]
    best = [read_card(folder / name)['sha256'] for name in ('whole', 'kept')]
    results = [read_json(folder / f'{name}.json') for name in ('whole', 'kept')]
    same = hashes[0] == hashes[1] and best[0] == best[1] and results[0] == results[1]
    print(f'{"the same weights and learning curve" if same else "OTHER WEIGHTS"}: {hashes[0]}, {hashes[1]}')
    return same and len(kept) == kills


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='how often to kill it')
    parser.add_argument('--epochs', type=int, default=30, help='epochs of the training')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    args = parser.parse_args()
    sys.exit(not compare(args.kills, args.epochs, args.seed))
