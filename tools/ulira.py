"""U-LiRA in both games with 256 half-split models of digits, at the size of the specification's demonstration; writes results/ulira.json.

    python tools/ulira.py [--models 256] [--out results/ulira.json]
"""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lotus_nb.audit import Phi, audit
from lotus_nb.core import atomic, provenance
from lotus_nb.data.digits import digits
from lotus_nb.ensemble import forget_parts, gold_ensemble, half_splits
from lotus_nb.metrics.ensembles import Attack, memorisation, ulira_efficacy, ulira_privacy
from lotus_nb.train import recipe

ROOT = Path(__file__).resolve().parent.parent


def noisy_digits(n=1200, share=.15):
    "Digits of which a share has a wrong label, and which."
    clean = digits(0, n_train=n, n_val=300).train
    rng = np.random.default_rng(0)
    wrong = rng.random(n) < share
    labels, at = clean.labels.clone(), clean.ids[wrong]
    labels[at] = (labels[at] + torch.as_tensor(rng.integers(1, 10, wrong.sum()))) % 10
    return replace(clean, labels=labels, source='digits, some with wrong labels'), wrong


def new_model(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def ascent(z, y): return -F.cross_entropy(z, y, reduction='none')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--models', type=int, default=256)
    p.add_argument('--threads', type=int, default=1, help='of torch; networks this small do not gain from a second')
    p.add_argument('--out', type=Path, default=ROOT/'results'/'ulira.json')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    n, (pool, wrong), began = a.models, noisy_digits(), time.perf_counter()
    members = half_splits(n, len(pool))
    forget = forget_parts(members, 5)[0]
    same = dict(data=pool, n=n, new_model=new_model, members=members, chunk=64)
    original, seconds = gold_ensemble(**same), {}
    seconds['original'] = original.seconds
    gold, gold2 = (gold_ensemble(**same, forget=forget, seed=s) for s in (0, 1000))
    short = recipe('digits', epochs=4)
    ascended = gold_ensemble(**{**same, 'members': forget}, start=original, loss=ascent, recipe=recipe('digits', epochs=1))
    methods = {'nothing': original, 'finetuning': gold_ensemble(**same, forget=forget, start=original, recipe=short),
               'ascent, then finetuning': gold_ensemble(**same, forget=forget, start=ascended, recipe=short),
               'retraining': gold2,
               'heavy ascent': gold_ensemble(**{**same, 'members': forget}, start=original, loss=ascent, recipe=recipe('digits', epochs=4, lr=.03))}
    side, rows = np.where(forget, 1, np.where(members, -1, 0)), {}
    right = lambda e: float(e.correct[:, ~wrong][~members[:, ~wrong]].mean())
    for k, e in methods.items():
        pop = Attack(e.phi.astype(float), side, np.zeros(n), np.arange(n)//2)
        private, effective = ulira_privacy(e.phi, members, forget), ulira_efficacy(e.phi, gold.phi, forget)
        rows[k] = dict(accuracy=right(e), population=pop.auc(), privacy=private.auc(), interval=private.interval(), tpr=private.tpr(), efficacy=effective.auc(),
                       wrong=private.auc(wrong), right=private.auc(~wrong))
        seconds[k] = e.seconds
    judged = {k: audit(Phi(methods[k].phi, gold.phi, gold2.phi, original.phi, members, forget), who=k) for k in ('finetuning', 'ascent, then finetuning', 'heavy ascent')}
    score = memorisation(original.correct, members)
    note = dict(command='python tools/ulira.py', models=n, images=len(pool), wrong_labels=int(wrong.sum()), forgotten=float(forget.sum(1).mean()), rows=rows,
                verdicts={k: v.verdict for k, v in judged.items()}, values={k: v.values.round(4).to_dict() for k, v in judged.items()},
                memorisation=dict(wrong=float(score[wrong].mean()), right=float(score[~wrong].mean())),
                seconds=dict(seconds, everything=time.perf_counter() - began), **provenance())
    with atomic(a.out) as tmp: tmp.write_text(json.dumps(note, indent=1, default=float) + '\n')
    print(json.dumps(note['rows'], indent=1), note['seconds'])


if __name__ == '__main__': main()
