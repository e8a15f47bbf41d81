#!/usr/bin/env python
"""Make a folder of photographs, DEST/<class>/<number>.png, from Fashion-MNIST.

The source is a folder with the four .gz files in which the data set is distributed; on Debian and Ubuntu the package
dataset-fashion-mnist brings them. The first images of each class are taken, in the order of the file.
Exit status: 0, 1 if the source is not there or too small, 2 for a wrong argument.
"""

import argparse
import gzip
import struct
import sys
from collections import Counter
from pathlib import Path
from PIL import Image

names = 'T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot'.split()


def read_idx(path):
    "(shape, bytes) of an IDX file of bytes"
    raw = gzip.decompress(path.read_bytes())
    zero, kind, dims = struct.unpack('>HBB', raw[:4])
    if zero or kind != 8:
        sys.exit(f'{path} is not an IDX file of bytes.')
    return struct.unpack(f'>{dims}I', raw[4 : 4 + 4 * dims]), raw[4 + 4 * dims :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dest', type=Path, help='the folder to make')
    parser.add_argument(
        '--classes', type=int, default=10, choices=range(1, 11), metavar='1..10', help='how many classes (default: 10)'
    )
    parser.add_argument('--each', type=int, default=30, help='how many images of each class (default: 30)')
    parser.add_argument(
        '--split', choices=['train', 't10k'], default='train', help='the file to take them from (default: train)'
    )
    parser.add_argument(
        '--source', type=Path, default='/usr/share/datasets/fashion-mnist', help='where the .gz files are'
    )
    args = parser.parse_args()

    images, labels = (args.source / f'{args.split}-{kind}-ubyte.gz' for kind in ('images-idx3', 'labels-idx1'))
    for path in (images, labels):
        if not path.exists():
            sys.exit(
                f'{path} is not there: install the package dataset-fashion-mnist, or name the folder with --source.'
            )
    (n, height, width), pixels = read_idx(images)
    _, labels = read_idx(labels)
    made, size = Counter(), height * width
    for i, label in enumerate(labels):
        if label >= args.classes or made[label] == args.each:
            continue
        folder = args.dest / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.frombytes('L', (width, height), pixels[i * size : (i + 1) * size]).save(folder / f'{i:05}.png')
        made[label] += 1
    short = [names[c] for c in range(args.classes) if made[c] < args.each]
    if short:
        sys.exit(f"The {n} images hold fewer than {args.each} of {', '.join(short)}.")
    print(f'{sum(made.values())} images of {args.classes} classes in {args.dest}')


if __name__ == '__main__':
    main()
