"""Judge the stored evidence of `tools/results.py cifar10` beside a second gold, and write `results/cifar10/checks.csv`.

    python tools/audit_results.py --root FOLDER       # needs what `tools/results.py cifar10` left in .cache/, and one more training

The second gold is trained as gold was, with first weights and an order of images of its own (seed 1000).
"""
import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from lotus_nb.bench import CHECKS, evidence_file
from lotus_nb.cli import image_task
from lotus_nb.core import atomic, provenance, show_progress
from lotus_nb.evaluation import judge
from lotus_nb.metrics.core import evidence, load_evidence, save_evidence

ROOT = Path(__file__).resolve().parent.parent


def second_gold(work, root, device):
    "Evidence of the second gold, from its file or from a training."
    file = evidence_file(work, 'cifar10', 0, 'gold2')
    if file.exists(): return load_evidence(file)
    task = image_task(0, work/'models', data='cifar10', root=root, model='cifar_resnet20', weights=None, gold='train', gold2='train', forget='.1',
                      recipe='cifar-resnet20-short', batch_size=128, device=device)
    return load_evidence(save_evidence(evidence(task.gold2, task), file))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--root', help='folder with the data')
    p.add_argument('--device', default='cpu')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--out', type=Path, default=ROOT/'results'/'cifar10')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    work, rows, said = ROOT/'.cache'/'results'/'cifar10', [], {}
    with show_progress(): gold2 = second_gold(work, a.root, a.device)
    named = {k: load_evidence(evidence_file(work, 'cifar10', 0, k)) for k in ('noop', 'gold')}
    for f in sorted((work/'evidence').glob('cifar10-*-s0.npz')):
        who = f.stem.removeprefix('cifar10-').removesuffix('-s0')
        if who in ('noop', 'gold', 'gold2'): continue
        report = judge(dict(new=load_evidence(f), original=named['noop'], gold=named['gold'], gold2=gold2), ['forget_accuracy', 'test_accuracy', 'auc_loss', 'jsd'],
                       who=who, task='cifar10')
        rows.append(report.checks[report.checks.model == who])
        said[who] = dict(verdict=report.verdict, table=json.loads(report.table().to_json(orient='index')))
    controls = report.checks[report.checks.model != who]
    checks = pd.concat([controls, *rows]).rename(columns={'model': 'method'}).assign(task='cifar10', seed=0)
    wrong = pd.DataFrame([dict(task='cifar10', seed=0, method='noop', check='controls', outcome='INVALID', why=f) for f in report.invalid])
    checks = pd.concat([checks, wrong])
    with atomic(a.out/'checks.csv') as tmp: checks[['task', 'seed', 'method', *CHECKS]].to_csv(tmp, index=False)
    note = dict(command='python tools/audit_results.py', gold2=gold2.model, gold=named['gold'].model, original=named['noop'].model, invalid=report.invalid,
                methods=said, **provenance())
    with atomic(a.out/'verdicts.json') as tmp: tmp.write_text(json.dumps(note, indent=1) + '\n')


    print(checks[checks.check != 'controls'].pivot(index='method', columns='check', values='outcome').to_string(), report.invalid)


if __name__ == '__main__': main()
