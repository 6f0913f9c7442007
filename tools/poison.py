"""Make `results/poison`: train a CIFAR-10 network on images with a backdoor, unlearn what is known of them by several methods, and write what is left.

    python tools/poison.py --root FOLDER

A part of the training images is poisoned; original and gold are a ResNet-20 each, trained by one short recipe; gold is trained anew for each share γ of the
poisoned images that is known. Killed and started again, it goes on where it was. Models and single results stay in `.cache/poison/`, out of the repository.
"""
import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from lotus_nb.core import atomic, digest, provenance, show_progress
from lotus_nb.data.cifar import cifar
from lotus_nb.data.core import Splits, draw_stratified
from lotus_nb.data.poison import Trigger, backdoor, known, with_trigger
from lotus_nb.loop import device_of
from lotus_nb.methods.core import solve
from lotus_nb.metrics.accuracy import accuracy
from lotus_nb.metrics.core import evidence
from lotus_nb.metrics.stress import attack_success, corrected_accuracy
from lotus_nb.models import create_model
from lotus_nb.train import make_task, recipe

ROOT = Path(__file__).resolve().parent.parent
TARGET, TRIGGER = 0, Trigger(4, (24, 24), (1., 0., 1.))      # far enough from the border to survive crops; the class is 'airplane'

GAMMAS = [1., .5]

# Settings of the authors, with fewer epochs where they do not fit; those of tools/results.py. None was tuned for backdoors.
METHODS = {
    'finetune': dict(recipe='ssd', epochs=3), 'neggrad': dict(recipe='scrub-small', epochs=1), 'lotus': dict(recipe='resnet18', epochs=5),
    'relabel': dict(recipe='ssd-repo', epochs=2), 'bad_teacher': dict(recipe='official'), 'scrub': dict(recipe='official-large', epochs=2, msteps=1),
    'ssd': dict(recipe='resnet18'), 'salun': dict(recipe='cifar10', epochs=2)}


def poisoned(root, n, share, seed):
    "The first parts of CIFAR-10 with a backdoor, and its record."
    clean = cifar('cifar10', root, seed)
    some = clean.train.take(draw_stratified(clean.train.y, n/len(clean.train), seed))
    bad, record = backdoor(some, TARGET, share, trigger=TRIGGER, seed=seed)
    return Splits(bad, clean.val, clean.test), record


def judge(model, task, record, positions):
    "What is left of the backdoor, and what has been lost besides."
    ev, shown = (evidence(model, t, ['forget', 'test']) for t in (task, replace(task, test=with_trigger(task.test, record))))
    return dict(attack_success=attack_success(shown, TARGET), test_accuracy=accuracy(ev, 'test'),
                triggered_accuracy=corrected_accuracy(shown, classes=[c for c in range(task.n_classes) if c != TARGET]),
                forget_corrected=corrected_accuracy(ev, 'forget', record.part(positions).old))


def cell(work, name, gamma, facts, make):
    "A finished result, from its file if it is there."
    file = work/'cells'/f'{name}-{gamma:g}-{digest(facts)}.json'
    if not file.exists():
        with atomic(file) as tmp: tmp.write_text(json.dumps(dict(facts, method=name, gamma=gamma, **make()), indent=1, default=str))
    return json.loads(file.read_text())


def run(a, work):
    splits, record = poisoned(a.root, a.n, a.share, a.seed)
    new = lambda seed: create_model('cifar_resnet20', 10, seed=seed)
    r, out = recipe('cifar-resnet20', epochs=a.epochs, warmup=1, lr=.1), []
    for gamma in a.gammas:
        positions = known(record, gamma, a.seed)
        task = make_task(splits, positions, new, r, seed=a.seed, folder=work/'models', name=f'cifar10, γ={gamma:g}')
        facts = dict(recipe=asdict(r), n=a.n, share=a.share, seed=a.seed, record=digest(record.positions, repr(TRIGGER)), threads=torch.get_num_threads())
        def result(model, hparams=None, seconds=None, cost=None):
            return dict(judge(model, task, record, positions), hparams=hparams or {}, seconds=seconds, cost=cost or {},
                        forget=len(task.forget), retain=len(task.retain), weights=digest(model), provenance=provenance(device_of(model)))
        out.append(cell(work, 'noop', gamma, facts, lambda: result(task.model)))
        out.append(cell(work, 'gold', gamma, facts, lambda: result(task.gold, seconds=task.gold_seconds)))
        for name, h in METHODS.items():
            def unlearned():
                u = solve(task, name, seed=a.seed, **h)
                return result(u.model, u.hparams, u.seconds, u.cost)
            out.append(cell(work, name, gamma, {**facts, 'asked': h}, unlearned))
    return out, record, r


def write(cells, record, r, a):
    "Rows, and a note of how they came about."
    columns = ['method', 'gamma', 'forget', 'retain', 'attack_success', 'test_accuracy', 'triggered_accuracy', 'forget_corrected', 'seconds']
    frame = pd.DataFrame(cells)
    frame['backward'] = [c['cost'].get('backward') for c in cells]
    frame['hparams'] = [json.dumps(c['hparams'], sort_keys=True) for c in cells]
    given = [*(['--threads', str(a.threads)] if a.threads else []), *(['--gammas', *map('{:g}'.format, a.gammas)] if a.gammas != GAMMAS else [])]
    note = dict(command=' '.join(['python tools/poison.py --root FOLDER', *given]), **provenance(), model='cifar_resnet20', recipe=asdict(r), images=a.n, poisoned=len(record),
                share=a.share, seed=a.seed, target=TARGET, trigger=asdict(TRIGGER), test_images=5000,
                made=sorted({f"{c['provenance']['commit']} on {c['provenance']['device_name']}, {c['provenance']['threads']} threads" for c in cells}),
                weights={f"{c['method']} {c['gamma']:g}": c['weights'] for c in cells})
    with atomic(a.out/'results.csv') as tmp: frame[[*columns, 'backward', 'hparams']].to_csv(tmp, index=False)
    with atomic(a.out/'provenance.json') as tmp: tmp.write_text(json.dumps(note, indent=1, default=str) + '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--root', help='folder with CIFAR-10; None takes LOTUS_DATA, or ~/.lotus_nb/data')
    p.add_argument('--n', type=int, default=10_000, help='training images')
    p.add_argument('--share', type=float, default=.05, help='share of the images of other classes that get the trigger')
    p.add_argument('--epochs', type=int, default=12, help='of original and gold')
    p.add_argument('--gammas', type=float, nargs='+', default=GAMMAS, help='shares of the poisoned images that are known')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--threads', type=int, help='threads of torch; results of a CPU depend on them in the last digits')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'poison')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    with show_progress(): cells, record, r = run(a, ROOT/'.cache'/'poison')
    write(cells, record, r, a)


if __name__ == '__main__': main()
