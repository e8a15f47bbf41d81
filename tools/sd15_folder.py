#!/usr/bin/env python
"""Build a model folder of Stable Diffusion 1.5's shape with random weights, to try commands at full size.

The U-Net, autoencoder and text encoder have the true layers and sizes, about 4 GB; the tokenizer is the embedded
model's. The images are noise. What can be tried is whether a machine carries the model, and how long a step takes.
"""

import argparse
import shutil
from pathlib import Path

from sgdmix.diffusion.shapes import build_model

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('dest', type=Path, help='folder to write')
    parser.add_argument('--size', type=int, default=512, help='side of its images in pixels')
    args = parser.parse_args()
    if args.dest.exists():
        raise SystemExit(f'{args.dest} is there already: remove it, or name another folder.')
    if shutil.disk_usage(args.dest.parent).free < 5e9:
        raise SystemExit(f'There are less than 5 GB free in {args.dest.parent}: choose another folder.')
    build_model(args.dest, 'sd15', args.size)
    print(args.dest)
