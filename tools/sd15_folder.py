#!/usr/bin/env python
"""Build a model folder of Stable Diffusion 1.5's shape with random weights, to try commands at full size.

The U-Net, autoencoder and text encoder have the true layers and sizes, about 4 GB; the tokenizer is the embedded
model's. The images are noise. What can be tried is whether a machine carries the model, and how long a step takes.
"""

import argparse
import shutil
from pathlib import Path

import torch

UNET = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)  # the other settings are diffusers' own
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=('DownEncoderBlock2D',) * 4,
    up_block_types=('UpDecoderBlock2D',) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
TEXT = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
    projection_dim=768,
)
SCHEDULE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
)


def build(dest, size: int = 512, seed: int = 0):
    "Write the folder; `size` is the side of the images in pixels"
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel
    from sgdmix.diffusion.pipeline import check_model

    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**{**VAE, 'sample_size': size}),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
        tokenizer=AutoTokenizer.from_pretrained(check_model('embedded') / 'tokenizer'),
        unet=UNet2DConditionModel(**{**UNET, 'sample_size': size // 8}),
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(dest, safe_serialization=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('dest', type=Path, help='folder to write')
    parser.add_argument('--size', type=int, default=512, help='side of its images in pixels')
    args = parser.parse_args()
    if args.dest.exists():
        raise SystemExit(f'{args.dest} is there already: remove it, or name another folder.')
    if shutil.disk_usage(args.dest.parent).free < 5e9:
        raise SystemExit(f'There are less than 5 GB free in {args.dest.parent}: choose another folder.')
    build(args.dest, args.size)
    print(args.dest)
