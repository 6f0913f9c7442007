"""Make `results/figures/`: what the pages of the supplement's figures 3 to 5 show of CIFAR-10 and CIFAR-100.

    python tools/figures.py --root FOLDER          # needs the data; hashing 60,000 images takes about half a minute on one core

Stored are numbers and positions, never images.
"""
import argparse
import json
from pathlib import Path

import imagehash
import numpy as np
import PIL

from lotus_nb.cleaning import distance_histogram, find_duplicates, find_leaks, hash_images
from lotus_nb.clean_report import class_counts
from lotus_nb.core import atomic, digest, provenance, show_progress
from lotus_nb.data.cifar import cifar
from lotus_nb.data.core import split_forget

ROOT = Path(__file__).resolve().parent.parent
SEEDS = range(5)                                 # of the draw of the forget set
LOOK = 4                                         # bits up to which pairs are counted
SHOWN = 12                                       # pairs of which positions are stored, of each kind


def hashed(splits):
    "Hashes of all images, by id; label and split of each."
    every = splits.train
    frame = hash_images(every.pixels.permute(0, 2, 3, 1).numpy())
    split = np.full(len(frame), 'train', object)
    for name in ('val', 'test'): split[getattr(splits, name).ids] = name
    return frame.assign(split=split, label=[every.classes[y] for y in every.labels])


def fig3(frame, divided):
    "Numbers of pairs by distance, and the first ones: within train and test, across them, and of forget and retain."
    f = frame.assign(split=frame['split'].replace('val', 'test'))                 # the published test set, not its halves
    task, out = divided[divided['split'].isin(['forget', 'retain'])], {}
    for kind, pairs in (('within', find_duplicates(f, LOOK)), ('across', find_leaks(f, LOOK)), ('forget and retain', find_leaks(task, LOOK))):
        first = pairs.sort_values(['distance', 'file_a', 'file_b'], ignore_index=True).head(SHOWN)
        out[kind] = dict(counts=np.bincount(pairs['distance'], minlength=LOOK + 1).tolist(),
                         other_label=np.bincount(pairs['distance'][pairs['label_a'] != pairs['label_b']], minlength=LOOK + 1).tolist(),
                         first=first[['file_a', 'file_b', 'split_a', 'split_b', 'label_a', 'label_b', 'distance']].values.tolist())
    return out


def forget_and_retain(frame, splits, seed):
    "The frame with the training images divided."
    forget, retain = split_forget(splits.train, .1, seed)
    split = frame['split'].to_numpy(object).copy()
    split[forget.ids], split[retain.ids] = 'forget', 'retain'
    return frame.assign(split=split), digest(forget.ids)


def fig4(frame): return class_counts(frame)[0].to_dict()


def fig5(frame, splits):
    "How many forget × retain pairs differ in 0…64 bits, for several draws of the forget set."
    counts, ids = [], []
    for seed in SEEDS:
        f, forgotten = forget_and_retain(frame, splits, seed)
        counts.append(distance_histogram(*(f['hash'][f['split'] == s] for s in ('forget', 'retain'))).tolist())
        ids.append(forgotten)
    return dict(seeds=list(SEEDS), forget_ids=ids, counts=counts)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--root', help='folder with the data')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'figures')
    a = p.parse_args()
    found = {'fig3': {}, 'fig4': {}, 'fig5': {}}
    for name in ('cifar10', 'cifar100'):
        splits = cifar(name, a.root)
        with show_progress(): frame = hashed(splits)
        divided = forget_and_retain(frame, splits, SEEDS[0])[0]
        found['fig3'][name], found['fig4'][name], found['fig5'][name] = fig3(frame, divided), fig4(divided), fig5(frame, splits)
    note = dict(command='python tools/figures.py', hash=f'phash · ImageHash {imagehash.__version__} · Pillow {PIL.__version__}', **provenance())
    for name, sets in found.items():
        with atomic(a.out/f'{name}.json') as tmp: tmp.write_text(json.dumps(dict(provenance=note, sets=sets)) + '\n')


if __name__ == '__main__': main()
