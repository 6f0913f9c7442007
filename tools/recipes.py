"""Train by the paper's recipe and by the fast one, and compare what comes out and what it takes.

    python tools/recipes.py --root FOLDER                                      # ResNet-18 on CIFAR-10, three seeds; for a GPU
    python tools/recipes.py --root FOLDER --data cifar100
    python tools/recipes.py --root FOLDER --share .2 --width 16 --seeds 0 1 2 3 4 5 6 7 8 9    # a fifth of the images, a quarter of the channels: for a CPU
    python tools/recipes.py --data digits --seeds 0 1 2 3 4                    # a small network with BatchNorm, 400 images

With `--share`, batches shrink alike, so that an epoch has as many steps; on digits they are a sixteenth. Killed and started again, it goes on after the last
finished epoch; models and checkpoints stay in `.cache/recipes`, rows and how they came about go to `results/recipes`. `engine/train` reads them.
"""
import argparse
import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lotus_nb.core import atomic, digest, provenance, show_progress
from lotus_nb.data.core import draw_stratified, take
from lotus_nb.data.digits import digits
from lotus_nb.loop import predict
from lotus_nb.models import create_model
from lotus_nb.parts import share_correct
from lotus_nb.protocol import Cell, load_set
from lotus_nb.train import make_task, recipe

ROOT = Path(__file__).resolve().parent.parent
SCALES = {'lotus-resnet18': 'full', 'fast-resnet18': 'fast'}      # and the scale of the protocol that each belongs to, whose images they get


def a_share(splits, share):
    "Splits with this share of the training images, the same of each class."
    return splits if share == 1 else splits._replace(train=take(splits.train, draw_stratified(splits.train.y, share, 0)))


def smaller(size, share):
    "A batch size shrunk with the images, so that an epoch has as many steps."
    return size and max(2, round(share*size))


def network(seed, k, width, device='cpu'): return create_model('lotus_resnet18', k, seed=seed, width=width).to(device)


def small_network(seed, device): return create_model('small_cnn', 10, in_chans=1, norm='batch', seed=seed).to(device)


def trained(name, seed, a, work):
    "A row: test accuracy after a training by this recipe, and what it went through."
    changes, new = {'epochs': a.epochs, 'warmup': 0} if a.epochs else {}, partial(small_network, device=a.device)
    if a.data == 'digits': splits, part, changes['amp'] = digits(seed, device=a.device), 1/16, False
    else:
        (splits, _), part = load_set(Cell('resnet18', a.data, scale=SCALES[name]), seed, a.root, a.device), a.share
        new = partial(network, k=len(splits.train.classes), width=a.width, device=a.device)
    splits = a_share(splits, a.share)
    r = recipe(name, batch_size=smaller(recipe(name).batch_size, part), **changes)
    task = make_task(splits, .1, new, r, seed=seed, folder=work, gold=False)
    facts = next(f for f in map(json.loads, (f.read_text() for f in work.glob('original-*.json'))) if f['recipe'] == asdict(r))
    right = {p: share_correct(*predict(task.model, task.loader(p, train=False))) for p in ('val', 'test')}
    epochs = len(facts['log'])
    return dict(recipe=name, seed=seed, test_accuracy=right['test'], val_accuracy=right['val'], epochs=epochs, images=epochs*len(splits.train), steps=epochs*-(-len(splits.train)//r.batch_size),
                seconds=facts['seconds']), {k: facts[k] for k in ('commit', 'device_name', 'threads', 'versions')}


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--root', help='folder with the data')
    p.add_argument('--data', choices=['cifar10', 'cifar100', 'digits'], default='cifar10')
    p.add_argument('--share', type=float, default=1., help='of the training images')
    p.add_argument('--width', type=int, default=64, help='channels of the first layer; 64 is the network of the paper')
    p.add_argument('--seeds', type=int, nargs='*', default=[3407, 13, 12])
    p.add_argument('--epochs', type=int, help='to try it out: so many, by every recipe')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--minutes', type=float, default=1e6, help='no training begins later than this')
    p.add_argument('--work', type=Path, default=ROOT/'.cache'/'recipes')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'recipes')
    a = p.parse_args()
    if not 0 < a.share <= 1: p.error(f'--share is {a.share:g}; it must be above 0 and at most 1')
    if a.data == 'digits' and (a.share, a.width) != (1, 64): p.error('--share and --width are for CIFAR; digits are few and their network is small')
    if a.device == 'cpu': torch.set_num_threads(1)
    odd = {'share': a.share < 1, 'width': a.width != 64, 'epochs': a.epochs}
    name = '-'.join([a.data, *(f'{k}-{getattr(a, k):g}' for k, v in odd.items() if v)])
    begun, rows, made, left = time.time(), [], [], []
    with show_progress():
        for seed in a.seeds:
            for r in SCALES:
                work = a.work/name/f'{r}-{seed}'
                if time.time() - begun > 60*a.minutes and not list(work.glob('original-*.json')): left.append(f'{r}, seed {seed}'); continue
                row, facts = trained(r, seed, a, work)
                rows.append(row)
                made.append(f"{facts['commit']} on {facts['device_name']}, {facts['threads']} threads")
    text = pd.DataFrame(rows).to_csv(index=False)
    changed = ''.join(f' --{k} {getattr(a, k):g}' for k, v in odd.items() if v)
    command = f'python tools/recipes.py{"" if a.data == "digits" else " --root FOLDER"} --data {a.data}{changed} --seeds {" ".join(map(str, a.seeds))}'
    note = dict(command=command, **provenance(a.device), made=sorted(set(made)), digest=digest(text), not_run=left)
    for file, content in ((f'{name}.csv', text), (f'{name}.json', json.dumps(note, indent=1, default=str) + '\n')) if rows else ():
        with atomic(a.out/file) as tmp: tmp.write_text(content)
    if left: raise SystemExit(f"Stopped before {left[0]}; the same command goes on.")


if __name__ == '__main__': main()
