"""Measure how well near duplicates are found in CIFAR-10: by hashes, by colours, and by features of a ResNet-56, on the pairs that people have judged (ciFAIR).

    python tools/cifair.py --root FOLDER      # needs cifar10*.zip, annotations.npz and weights/cifar10_resnet56-*.safetensors; about 10 minutes on one core

For each listed pair it stores how near it is, and how many of all 10,000 × 50,000 pairs of a test and a training image are at least as near: so many must be looked at
to find it. Hashes and features stay in `.cache/cifair/`, out of the repository, and are taken from there by the next run.
"""
import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lotus_nb.cleaning import HASHES, distance_histogram, hash_images
from lotus_nb.core import atomic, provenance, show_progress
from lotus_nb.data.cifar import cifar
from lotus_nb.models import create_model, normalisation
from lotus_nb.neighbours import features, find_near_duplicates

ROOT = Path(__file__).resolve().parent.parent
N = 50_000                                                   # training images; the test images follow


def kept(file, make):
    "An array from a file, or made now and written there."
    if file.exists(): return np.load(file)
    with atomic(file) as tmp: np.save(tmp, made := make())
    return made


def feature_ranks(rows, pairs):
    "For each pair: its cosine, how many of all pairs are at least as near (to within 1e-6), and whether it is its test image's nearest."
    x = torch.nn.functional.normalize(torch.as_tensor(rows).float())
    train, test = x[:N], x[N:]
    sim = (test[pairs[:, 0]]*train[pairs[:, 1]]).sum(1)
    ordered, counts, nearest = sim.sort().values, torch.zeros(len(pairs) + 1, dtype=torch.long), []
    for block in test.split(250):
        near = block @ train.T
        nearest.append(near.argmax(1))
        near = near[near >= ordered[0] - 1e-6]
        counts += torch.bincount(torch.bucketize(near, ordered - 1e-6, right=True), minlength=len(pairs) + 1)
    above = counts.flip(0).cumsum(0).flip(0)                                                  # [i]: pairs at least as near as the i-th farthest listed one
    return sim.numpy(), above[1 + torch.searchsorted(ordered, sim)].numpy(), torch.cat(nearest)[pairs[:, 0]].numpy() == pairs[:, 1]


def all_features(model, every, work):
    "Penultimate features, and the last maps on a grid, from one pass: the averages of 4 × 4 fields make up those of 2 × 2 and of the whole."
    fields = torch.as_tensor(kept(work/'grid4.npy', lambda: features(model, every, grid=4).numpy()))
    pooled = {g: torch.nn.functional.adaptive_avg_pool2d(fields.view(len(fields), -1, 4, 4), g).flatten(1) for g in (1, 2)}
    few = every.take(range(250))
    torch.testing.assert_close(features(model, few), pooled[1][:250], rtol=0, atol=1e-4)
    torch.testing.assert_close(features(model, few, grid=2), pooled[2][:250], rtol=0, atol=1e-4)
    return {'penultimate': pooled[1].numpy(), 'grid 2': pooled[2].numpy(), 'grid 4': fields.numpy()}


def thumbnails(every):
    "Colours of 8 × 8 fields, less those of the average training image."
    x = torch.nn.functional.adaptive_avg_pool2d(every.pixels.float()/255, 8).flatten(1)
    return (x - x[:N].mean(0)).numpy()


def hash_ranks(hashes, pairs):
    "For each pair: its Hamming distance, and how many of all pairs are at least as near."
    far = np.bitwise_count(hashes[pairs[:, 0] + N] ^ hashes[pairs[:, 1]]).astype(int)
    return far, distance_histogram(hashes[N:], hashes[:N]).cumsum()[far]


def search(rows, least):
    "The same search by the library's own function: how many pairs it finds."
    return dict(threshold=float(least), pairs=len(find_near_duplicates(rows[N:], rows[:N], k=None, threshold=least)))


def challenge(rows, forget, labels, least):
    "Near twins of the unlearning challenge's forget images among the other training images."
    keep = np.setdiff1d(np.arange(N), forget)
    found = find_near_duplicates(rows[forget], rows[keep], k=None, threshold=least)
    a, b = forget[found.a], keep[found.b]
    return pd.DataFrame({'forget': a, 'retain': b, 'similarity': found.similarity, 'forget_label': labels[a], 'retain_label': labels[b]})


def sha256(file): return hashlib.sha256(file.read_bytes()).hexdigest()


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--root', type=Path, required=True, help='folder with the data')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'cifair')
    a = p.parse_args()
    work, lists = ROOT/'.cache'/'cifair', np.load(a.root/'annotations.npz')
    weights = next((a.root/'weights').glob('cifar10_resnet56-*.safetensors'))
    pairs, judged = lists['cifair10_test_train_pairs'].astype(int), lists['cifair10_test_train_judgment']
    model = create_model('cifar_resnet56', weights=weights).to(memory_format=torch.channels_last)
    every = replace(cifar('cifar10', a.root, stats=normalisation(model)).train, ids=torch.arange(60_000))
    frame = pd.DataFrame({'test': pairs[:, 0], 'train': pairs[:, 1], 'judgement': np.array(['exact', 'near', 'similar'])[judged]})
    wanted = judged < 2
    with show_progress():
        for kind in HASHES:
            hashes = kept(work/f'{kind}.npy', lambda: hash_images(every.pixels.permute(0, 2, 3, 1).numpy(), kind, workers=1)['hash'].to_numpy(np.uint64))
            frame[kind], frame[f'{kind} pairs'] = hash_ranks(hashes, pairs)
        rows = {'colours': thumbnails(every), **all_features(model, every, work)}
        for name, r in rows.items():
            frame[name], frame[f'{name} pairs'], frame[f'{name} nearest'] = feature_ranks(r, pairs)
    least = float(np.sort(frame['grid 4'][wanted])[::-1][int(np.ceil(.8*wanted.sum())) - 1])    # where 80 % of the exact and near ones are found
    note = dict(command='python tools/cifair.py --root FOLDER', **provenance(), weights=sha256(weights), lists=sha256(a.root/'annotations.npz'),
                search=search(rows['grid 4'], least))
    twins = challenge(rows['grid 4'], lists['neurips2023_forget_idx_cifar10'].astype(int), every.labels.numpy(), .95)
    with atomic(a.out/'pairs.csv') as tmp: frame.to_csv(tmp, index=False, float_format='%.7g')
    with atomic(a.out/'challenge.csv') as tmp: twins.to_csv(tmp, index=False, float_format='%.7g')
    with atomic(a.out/'provenance.json') as tmp: tmp.write_text(json.dumps(note, indent=1) + '\n')


if __name__ == '__main__': main()
