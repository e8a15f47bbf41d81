#!/usr/bin/env python
"""Damage the embedded model in hundreds of ways, and load each.

Each case is a copy of the model's folder with one file changed, or two: weights under other names, in other types, in
shards, cut, replaced, spoiled by a NaN; configurations with values missing, null, of a wrong type or of another model;
noise schedules of every class of diffusers; tokenizers without their parts; places that are no model folder at all. A
case must end in one of two ways. Either the model loads and gives the right image: that of the undamaged model where
the change has no meaning, on the noise schedule that diffusers computes where the schedule changed. Or it is refused
by an `InputError` of one sentence with its remedy. Anything else is a finding: another exception, or a wrong image.

The last line printed is a JSON object of counts; `--results FILE` appends it there. Exit status: 0 without a finding.
"""

import argparse
import collections
import itertools
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
warnings.simplefilter('ignore')

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from sgdmix.core import InputError  # noqa: E402

MODEL = root / 'sgdmix' / 'assets' / 'tiny'
STEMS = dict(unet='diffusion_pytorch_model', vae='diffusion_pytorch_model', text_encoder='model')
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:0123456789\nsize 3438167536\n'

# ---- changes: functions of a folder


def weights(copy, part):
    "The file of weights of a part"
    return copy / part / f'{STEMS[part]}.safetensors'


def config_of(copy, part):
    names = dict(scheduler='scheduler/scheduler_config.json', tokenizer='tokenizer/tokenizer_config.json')
    names['index'] = 'model_index.json'
    return copy / names.get(part, f'{part}/config.json')


def set_values(part, **values):
    def change(copy):
        path = config_of(copy, part)
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def drop_key(part, key):
    def change(copy):
        path = config_of(copy, part)
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))

    return change


def write(name, content):
    def change(copy):
        (copy / name).unlink(missing_ok=True)
        (copy / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(part, share):
    def change(copy):
        path = weights(copy, part)
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[: int(share * len(data))])

    return change


def renamed(part, *names, keep=False):
    def change(copy):
        path = weights(copy, part)
        for name in names:
            shutil.copyfile(path, copy / part / name)
        if not keep:
            path.unlink()

    return change


def tensors_with(part, edit):
    "Edit the dictionary of tensors of a part"

    def change(copy):
        path = weights(copy, part)
        tensors = load_file(path)
        path.unlink()
        save_file(edit(tensors), path, {'format': 'pt'})

    return change


def sharded(part, n, lose=None, variant=''):
    def change(copy):
        path = weights(copy, part)
        tensors, places = load_file(path), {}
        path.unlink()
        dot = f'.{variant}' if variant else ''
        for k in range(n):
            name = f'{STEMS[part]}{dot}-{k + 1:05}-of-{n:05}.safetensors'
            shard = {t: v for i, (t, v) in enumerate(tensors.items()) if i % n == k}
            places.update(dict.fromkeys(shard, name))
            if k != lose:
                save_file(shard, copy / part / name, {'format': 'pt'})
        index = copy / part / f'{STEMS[part]}.safetensors.index{dot}.json'
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        index.write_text(json.dumps(dict(metadata=dict(total_size=size), weight_map=places)))

    return change


def both(*changes):
    def change(copy):
        for c in changes:
            c(copy)

    return change


def spoil(value, which):
    def edit(tensors):
        name = sorted(tensors)[which % len(tensors)]
        tensors[name].view(-1)[-1] = value
        return tensors

    return edit


def lose(which):
    return lambda tensors: {k: v for i, (k, v) in enumerate(sorted(tensors.items())) if i != which % len(tensors)}


def reshape(which):
    def edit(tensors):
        name = sorted(tensors)[which % len(tensors)]
        tensors[name] = torch.cat([tensors[name], tensors[name]])
        return tensors

    return edit


def as_two_files(copy, vocabulary=True, merges=True):
    path = copy / 'tokenizer' / 'tokenizer.json'
    model = json.loads(path.read_text())['model']
    path.unlink()
    pairs = [' '.join(m) if isinstance(m, list) else m for m in model['merges']]
    if merges:
        (copy / 'tokenizer' / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(pairs) + '\n')
    if vocabulary:
        (copy / 'tokenizer' / 'vocab.json').write_text(json.dumps(model['vocab']))


def tokenizer_model(**values):
    def change(copy):
        path = copy / 'tokenizer' / 'tokenizer.json'
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | dict(model=config['model'] | values)))

    return change


# ---- cases: (kind, name, change, what must happen: 'same', 'refused', 'schedule' or 'either')


def weight_cases():
    for part, share in itertools.product(STEMS, (0, 1e-6, 1e-4, 0.3, 0.9, 0.999999)):
        yield 'weights', f'{part} cut to {share}', cut(part, share), 'refused'
    contents = dict(pointer=POINTER, page=b'<!DOCTYPE html><html>', pickle=b'\x80\x02}q', zip=b'PK\x03\x04' + bytes(99))
    contents.update(zeros=bytes(4096), noise=b'noise' * 100, gguf=b'GGUF' + bytes(99), json=b'{"a": 1}')
    for part, (name, content) in itertools.product(STEMS, contents.items()):
        yield 'weights', f'{part} is {name}', write(f'{part}/{STEMS[part]}.safetensors', content), 'refused'
    for part, variant in itertools.product(STEMS, ('fp16', 'bf16', 'fp32', 'non_ema', 'ema', 'int8')):
        yield 'weights', f'{part} only {variant}', renamed(part, f'{STEMS[part]}.{variant}.safetensors'), 'same'
        beside = renamed(part, f'{STEMS[part]}.{variant}.safetensors', keep=True)
        yield 'weights', f'{part} and {variant}', beside, 'same'
    for part in STEMS:
        yield 'weights', f'{part} none', renamed(part), 'refused'
        yield 'weights', f'{part} bin', renamed(part, f'{STEMS[part]}.bin'), 'refused'
        yield 'weights', f'{part} msgpack', renamed(part, 'flax_model.msgpack'), 'refused'
        yield 'weights', f'{part} odd name', renamed(part, 'weights.safetensors'), 'refused'
        yield 'weights', f'{part} bin beside', renamed(part, f'{STEMS[part]}.bin', keep=True), 'same'
        for n in (1, 2, 3):
            yield 'weights', f'{part} in {n} shards', sharded(part, n), 'same'
            yield 'weights', f'{part} lacks a shard of {n}', sharded(part, n, lose=n - 1), 'refused'
        yield 'weights', f'{part} in shards fp16', sharded(part, 2, variant='fp16'), 'same'
        index = f'{part}/{STEMS[part]}.safetensors.index.json'
        yield 'weights', f'{part} index torn', both(sharded(part, 2), write(index, '{"weight_map": ')), 'refused'
        yield 'weights', f'{part} index empty', both(sharded(part, 2), write(index, '{}')), 'refused'
        escape = json.dumps(dict(weight_map=dict(a='../../../etc/passwd')))
        yield 'weights', f'{part} index leaves', both(sharded(part, 2), write(index, escape)), 'refused'


def number_cases():
    for part, value in itertools.product(STEMS, (float('nan'), float('inf'), -float('inf'))):
        for which in (0, 5, -1):
            name = f'{part} {value} in tensor {which}'
            yield 'numbers', name, tensors_with(part, spoil(value, which)), 'refused'
    for part, which in itertools.product(STEMS, (0, 7, -1)):
        yield 'shapes', f'{part} lacks tensor {which}', tensors_with(part, lose(which)), 'refused'
        yield 'shapes', f'{part} doubles tensor {which}', tensors_with(part, reshape(which)), 'refused'
    for part, dtype in itertools.product(STEMS, (torch.float32, torch.bfloat16, torch.float64)):

        def cast(tensors, dtype=dtype):
            return {k: v.to(dtype) for k, v in tensors.items()}

        yield 'numbers', f'{part} as {dtype}', tensors_with(part, cast), 'near'
    for part in STEMS:

        def more(tensors):
            return tensors | {'another.weight': torch.zeros(3)}

        expected = 'same' if part == 'text_encoder' else 'refused'
        yield 'shapes', f'{part} has one more', tensors_with(part, more), expected
    prefixed = tensors_with('text_encoder', lambda ts: {f'text_model.{k}': v for k, v in ts.items()})
    yield 'shapes', 'text encoder with its prefix', prefixed, 'same'
    lora = tensors_with('unet', lambda ts: {k.replace('to_q.w', 'to_q.base_layer.w'): v for k, v in ts.items()})
    yield 'shapes', 'unet carries a LoRA', lora, 'refused'
    for value in (0.0, 1e30):
        flat = tensors_with('vae', lambda ts, v=value: {k: t * 0 + v if '.18.' in k else t for k, t in ts.items()})
        yield 'numbers', f'a layer of the vae is {value}', flat, 'either'


def config_cases():
    odd = (None, 0, -1, 1.5, 'text', True, [], {}, [8], 10**9)
    for name, value in itertools.product(('in_channels', 'out_channels', 'sample_size', 'cross_attention_dim'), odd):
        yield 'configs', f'unet {name}={value!r}', set_values('unet', **{name: value}), 'either'
    for name, value in itertools.product(('block_out_channels', 'down_block_types', 'layers_per_block'), odd):
        yield 'configs', f'unet {name}={value!r}', set_values('unet', **{name: value}), 'either'
    for name, value in itertools.product(('scaling_factor', 'latent_channels', 'block_out_channels'), odd):
        yield 'configs', f'vae {name}={value!r}', set_values('vae', **{name: value}), 'either'
    for name, value in itertools.product(('vocab_size', 'hidden_size', 'max_position_embeddings'), odd):
        yield 'configs', f'text_encoder {name}={value!r}', set_values('text_encoder', **{name: value}), 'either'
    yield 'configs', 'unet sample_size a pair', set_values('unet', sample_size=[16, 16]), 'same'
    yield 'configs', 'unet sample_size of a photograph', set_values('unet', sample_size=[24, 16]), 'refused'
    for name in ('class_embed_type', 'addition_embed_type', 'encoder_hid_dim_type'):
        yield 'configs', f'unet {name}', set_values('unet', **{name: 'projection'}), 'refused'
    yield 'configs', 'unet time_cond_proj_dim', set_values('unet', time_cond_proj_dim=256), 'refused'
    yield 'configs', 'unet num_class_embeds', set_values('unet', num_class_embeds=10), 'refused'
    for name in ('shift_factor', 'latents_mean', 'latents_std'):
        yield 'configs', f'vae {name}', set_values('vae', **{name: [0.5]}), 'refused'
    for part in ('unet', 'vae', 'text_encoder', 'scheduler', 'index'):
        name = str(config_of(Path('.'), part))
        for what, content in dict(torn='{"a":', empty='', array='[]', null='null', pointer=POINTER).items():
            yield 'configs', f'{part} config {what}', write(name, content), 'refused'
        yield 'configs', f'{part} config gone', lambda copy, n=name: (copy / n).unlink(), 'refused'


def index_cases():
    pipelines = (
        'StableDiffusionXL StableDiffusion3 Flux StableUnCLIP StableDiffusionUpscale Kandinsky LatentConsistency'
    )
    pipelines += 'Model PixArtAlpha StableCascade Wuerstchen AltDiffusion StableVideoDiffusion AudioLDM Hunyuan'
    for name in pipelines.split():
        yield 'index', f'a {name}Pipeline', set_values('index', _class_name=f'{name}Pipeline'), 'refused'
    for name in ('StableDiffusionPipeline', 'StableDiffusionImg2ImgPipeline', 'StableDiffusionControlNetPipeline'):
        yield 'index', f'a {name}', set_values('index', _class_name=name), 'same'
    for part in ('unet', 'vae', 'text_encoder', 'tokenizer', 'scheduler'):
        yield 'index', f'{part} null', set_values('index', **{part: [None, None]}), 'refused'
        yield 'index', f'{part} not named', drop_key('index', part), 'refused'
        yield 'index', f'{part} folder gone', lambda copy, p=part: shutil.rmtree(copy / p), 'refused'
        yield 'index', f'{part} is a word', set_values('index', **{part: 'diffusers'}), 'refused'
        yield 'index', f'{part} needs code', set_values('index', **{part: ['mine', 'Mine']}), 'refused'
        yield 'index', f'{part} of another class', set_values('index', **{part: ['diffusers', 'Another']}), 'refused'
    yield 'index', 'two text encoders', set_values('index', text_encoder_2=['transformers', 'CLIPTextModel']), 'refused'
    yield 'index', 'a safety checker', set_values('index', safety_checker=['x', 'Y']), 'same'
    for vae in ('AutoencoderKL', 'VQModel', 'ConsistencyDecoderVAE', 'AutoencoderDC', 'Mine', 7):
        yield 'index', f'vae config says {vae}', set_values('vae', _class_name=vae), 'refused'


def tokenizer_cases():
    yield 'tokenizer', 'no model_max_length', drop_key('tokenizer', 'model_max_length'), 'same'
    yield 'tokenizer', 'huge model_max_length', set_values('tokenizer', model_max_length=10**30), 'same'
    yield 'tokenizer', 'null model_max_length', set_values('tokenizer', model_max_length=None), 'either'
    yield 'tokenizer', 'model_max_length is text', set_values('tokenizer', model_max_length='32'), 'either'
    yield 'tokenizer', 'no config', lambda copy: (copy / 'tokenizer/tokenizer_config.json').unlink(), 'either'
    yield 'tokenizer', 'config torn', write('tokenizer/tokenizer_config.json', '{'), 'refused'
    yield 'tokenizer', 'empty config', write('tokenizer/tokenizer_config.json', '{}'), 'either'
    yield 'tokenizer', 'code of its own', set_values('tokenizer', auto_map={'AutoTokenizer': ['x.X', None]}), 'either'
    yield 'tokenizer', 'vocabulary and merges', as_two_files, 'same'
    yield 'tokenizer', 'no merges.txt', lambda copy: as_two_files(copy, merges=False), 'refused'
    yield 'tokenizer', 'no vocab.json', lambda copy: as_two_files(copy, vocabulary=False), 'refused'
    yield 'tokenizer', 'empty vocabulary', tokenizer_model(vocab={}), 'refused'
    yield 'tokenizer', 'empty merges', tokenizer_model(merges=[]), 'refused'
    yield 'tokenizer', 'vocabulary of another', tokenizer_model(vocab={'a': 0, 'b': 1}), 'refused'
    yield 'tokenizer', 'numbers beyond the table', tokenizer_model(vocab={'<|endoftext|>': 99999}), 'refused'
    yield 'tokenizer', 'model null', lambda c: write('tokenizer/tokenizer.json', '{"model": null}')(c), 'refused'
    for what, content in dict(torn='{"model', empty='', pointer=POINTER, array='[1]').items():
        yield 'tokenizer', f'tokenizer.json {what}', write('tokenizer/tokenizer.json', content), 'refused'


STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear')


def schedule_cases():
    import diffusers
    from sgdmix.diffusion.schedules import SAMPLERS, ZERO_SNR

    known = [name for name in dir(diffusers) if name.endswith('Scheduler')]
    for name in sorted(set(known) - set(SAMPLERS)) + ['MyScheduler']:
        rename = both(set_values('index', scheduler=['diffusers', name]), set_values('scheduler', _class_name=name))
        yield 'schedules', f'a {name}', rename, 'refused'
    values = [STABLE, {}, dict(beta_schedule='squaredcos_cap_v2'), dict(beta_start=1e-3, beta_end=0.03)]
    values += [dict(trained_betas=[0.0008 + 1e-5 * i for i in range(1000)]), dict(STABLE, num_train_timesteps=500)]
    values += [dict(STABLE, prediction_type=kind) for kind in ('epsilon', 'v_prediction', 'sample')]
    values += [dict(STABLE, timestep_spacing=kind) for kind in ('leading', 'linspace', 'trailing')]
    for name, given in itertools.product(SAMPLERS, values):
        yield 'schedules', f'{name} {given}'[:90], schedule(name, given), 'schedule'
    for name in SAMPLERS:
        expected = 'schedule' if name in ZERO_SNR else 'refused'
        yield 'schedules', f'{name} zero SNR', schedule(name, dict(STABLE, rescale_betas_zero_snr=True)), expected
    odd = dict(
        num_train_timesteps=(0, -1, 'x', None, 1.5),
        beta_start=(0, 2, 'x', None),
        beta_end=(0, 1, 'x', None),
        beta_schedule=('exp', None, 3),
        prediction_type=('flow_prediction', 'x', None),
        timestep_spacing=('x', None),
        steps_offset=(-1, 700, 'x', None),
        trained_betas=([], [2.0] * 1000, 'x', [0.1] * 3),
        use_flow_sigmas=(True,),
        variance_type=('learned', 'learned_range'),
    )
    for key, given in odd.items():
        for value in given:
            yield 'schedules', f'{key}={value!r}'[:60], set_values('scheduler', **{key: value}), 'refused'
    for key in ('use_karras_sigmas', 'thresholding', 'clip_sample', 'use_exponential_sigmas'):
        yield 'schedules', f'{key} is the sampler\'s', set_values('scheduler', **{key: True}), 'same'


def schedule(name, given):
    def change(copy):
        set_values('index', scheduler=['diffusers', name])(copy)
        (copy / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(dict(given, _class_name=name)))

    return change


def place_cases():
    def emptied(copy):
        shutil.rmtree(copy)
        copy.mkdir()

    def deeper(copy):
        shutil.move(copy, copy.with_name('within'))
        copy.mkdir()
        shutil.move(copy.with_name('within'), copy / 'model')

    def a_file(content, name=None):
        def change(copy):
            shutil.rmtree(copy)
            target = copy if name is None else copy / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)

        return change

    yield 'places', 'empty folder', emptied, 'refused'
    yield 'places', 'the folder above', deeper, 'refused'
    yield 'places', 'a file', a_file(b'text'), 'refused'
    for name in ('sd.ckpt', 'sd.safetensors', 'sd.pt', 'sd.bin', 'sd.gguf', 'adapter_config.json', 'config.json'):
        yield 'places', f'a folder with {name}', a_file(b'{"a": 1}', name), 'refused'
    yield 'places', 'gone', shutil.rmtree, 'refused'
    yield 'places', 'index gone', lambda copy: (copy / 'model_index.json').unlink(), 'refused'
    yield 'places', 'adapters', write('personalized.json', '{"model": "embedded"}'), 'refused'
    yield 'places', 'adapters, torn', write('personalized.json', '{'), 'refused'
    yield 'places', 'one part', lambda copy: [shutil.rmtree(copy / p) for p in ('vae', 'tokenizer')], 'refused'


GROUPS = (place_cases, index_cases, weight_cases, number_cases, config_cases, tokenizer_cases, schedule_cases)

# ---- running them


def copy_of(model, copy):
    "A copy whose weights are links"
    for p in model.rglob('*'):
        if p.is_dir():
            continue
        place = copy / p.relative_to(model)
        place.parent.mkdir(parents=True, exist_ok=True)
        if p.suffix == '.safetensors':
            place.symlink_to(p)
        else:
            shutil.copyfile(p, place)


def picture(model):
    "One refined image, and the pipeline"
    from sgdmix.diffusion.refine import Refiner

    refiner = Refiner(model, n_steps=4, guidance=1, device='cpu')
    side = refiner.size
    if side > 512:
        raise InputError(f'Too large to try here: {side} pixels.')
    x = torch.linspace(0, 1, 3 * side * side).view(1, 3, side, side)
    return refiner.refine(x, ['a photo of a red bird'], [0.75], [0]), refiner.pipe


def wrong(expected, image, pipe, copy, right):
    "What is wrong with the image of a model that loads; empty if nothing"
    if not image.isfinite().all() or image.amax() - image.amin() < 1 / 255:
        return 'no picture'
    if expected == 'refused':
        return 'loads, and should be refused'
    if expected in ('same', 'near'):
        limit = 0.05 if expected == 'near' else 1e-6
        same = image.shape == right.shape and (image - right).abs().max() <= limit
        return '' if same else 'another image'
    if expected == 'schedule':
        import diffusers

        config = json.loads((copy / 'scheduler' / 'scheduler_config.json').read_text())
        name = config['_class_name'].replace('DPMSolverSDE', 'KDPM2Discrete')  # the same schedule without a package
        theirs = torch.as_tensor(getattr(diffusers, name).from_config(config).alphas_cumprod).float()
        ours = pipe.scheduler.alphas_cumprod
        kind = config.get('prediction_type', 'epsilon')
        fits = len(ours) == len(theirs) and torch.allclose(ours, theirs, atol=2e-6)
        return '' if fits and pipe.scheduler.config.prediction_type == kind else 'another noise schedule'
    return ''


def attempt(change, expected, copy, right):
    "How a case ends: 'right', 'refused', or a finding with a traceback"
    try:
        image, pipe = picture(str(copy))
    except InputError as e:
        text = str(e)
        if expected in ('same', 'near', 'schedule'):
            return f'refused, and should load: {text}'
        return 'refused' if len(text) > 40 and '\n' not in text else f'no sentence: {text!r}'
    except Exception:
        return traceback.format_exc(limit=-4)
    problem = wrong(expected, image, pipe, copy, right)
    return problem or 'right'


def run(cases):
    "Counts by kind, and the findings"
    from diffusers.utils import logging

    logging.set_verbosity_error()
    counts, findings = collections.Counter(), []
    right, _ = picture(str(MODEL))
    with tempfile.TemporaryDirectory() as tmp:
        for i, (kind, name, change, expected) in enumerate(cases):
            copy = Path(tmp) / f'{i}' / 'model'
            copy_of(MODEL, copy)
            change(copy)
            ended = attempt(change, expected, copy, right)
            shutil.rmtree(copy.parent)
            counts[kind] += 1
            counts[ended if ended in ('right', 'refused') else 'findings'] += 1
            if ended not in ('right', 'refused'):
                findings.append(f'{kind}: {name}')
                print(f'FINDING {kind}: {name}\n  {ended}', flush=True)
    return counts, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--every', type=int, default=1, help='run each case whose number is a multiple of this')
    parser.add_argument('--kind', help='run the cases of one kind, such as weights')
    parser.add_argument('--results', help='file to append the counts to')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for group in GROUPS for case in group()]
    if args.kind:
        cases = [case for case in cases if case[0] == args.kind]
    cases = cases[:: args.every]
    print(f'{len(cases)} cases', flush=True)
    start = time.time()
    counts, findings = run(cases)
    command = 'python tools/attack_models.py' + (f' --kind {args.kind}' if args.kind else '')
    command += f' --every {args.every}' if args.every > 1 else ''
    line = dict(kind=f'models: {args.kind or "all"}', cases=len(cases), findings=len(findings), command=command)
    line.update(right=counts['right'], refused=counts['refused'])
    line['of'] = {kind: n for kind, n in counts.items() if kind not in ('right', 'refused', 'findings')}
    print(f'{time.time() - start:.0f} s')
    print(json.dumps(line))
    if args.results:
        with open(args.results, 'a') as f:
            f.write(json.dumps(line) + '\n')
    return 1 if findings or not cases else 0


if __name__ == '__main__':
    sys.exit(main())
