#!/usr/bin/env python
"""Check what sgdmix_run left in a workspace: OUT.

Every class has synthetic images, the manifests account for all of them, every row of the table was
trained, and the recommended classifier is whole.
Exit status: 0, or 1 with a sentence for each thing that is wrong.
"""

import sys
from pathlib import Path
from sgdmix.core import InputError, read_json, read_lines
from sgdmix.synthesis.driver import Manifest
from sgdmix.experiments.workspace import Workspace, method_title
from sgdmix.training.classifiers import load_classifier


def problems(out):
    "Sentences about what is wrong in the workspace `out`"
    table, results = Workspace(out).table, {r['method'] for r in read_lines(out / 'results.jsonl')}
    made = sorted(p.name for p in (out / 'synth').iterdir())
    for name in made:
        m = Manifest.from_folder(out / 'synth' / name)
        yield from m.check()
        if missing := set(table.classes) - set(m.df['label']):
            yield f'{name} has no image of {", ".join(sorted(missing))}.'
        if any(i not in set(table.train.names) for i in [*m.df['source'], *m.df['target']]):
            yield f'{name} used an image that is not for training.'
    for name in ('baseline', *made):
        if method_title(name) not in results:
            yield f'No classifier was trained for {method_title(name)}.'
    for f in ('table.md', 'strips.png'):
        if not (out / f).exists():
            yield f'{f} is missing.'
    yield from problems_of_best(out, table)


def problems_of_best(out, table):
    "Sentences about what is wrong with the classifier that the run recommends"
    try:
        best = load_classifier(out / 'best')
    except InputError as e:
        yield str(e)
        return
    if best.classes != table.classes:
        yield f'{out / "best"} knows other classes than the run.'
    if best.card['split'] != table.hash:
        yield f'{out / "best"} was trained on another split.'
    choice = read_json(out / 'choice.json')
    if best.card['choice'] != choice or best.card['method'] != choice['recommended']:
        yield f'{out / "best"} is not the classifier that {out / "choice.json"} recommends.'
    if (count := (out / 'table.md').read_text().count('Test accuracy')) > 1:
        yield f'table.md tells the test accuracy {count} times.'


if __name__ == '__main__':
    if len(sys.argv) != 2 or sys.argv[1] in ('-h', '--help'):
        sys.exit(__doc__)
    found = list(problems(Path(sys.argv[1])))
    print(
        '\n'.join(found) if found else f'{sys.argv[1]}: all classes, all images and all classifiers are accounted for'
    )
    sys.exit(bool(found))
