"""Make a folder of `results/`: train original and gold, unlearn by every method, judge, and write rows with their provenance.

    python tools/results.py digits
    python tools/results.py digits --forget .5             # half of the training images: results/digits-50
    python tools/results.py digits --forget class:3        # a whole class: results/digits-class-3
    python tools/results.py cifar10 --root FOLDER          # needs the data; on a core with AVX-512: two trainings of 20 to 25 minutes, about an hour of methods

Killed and started again, it goes on where it was. Models, evidence and checkpoints stay in `.cache/results/`, out of the repository; the
digests of the weights are stored, so that a rebuilt model can be compared with the one that the rows are about.
"""
import argparse
import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import torch

from lotus_nb.bench import ROWS, bench
from lotus_nb.cli import image_task
from lotus_nb.core import atomic, digest, provenance, show_progress
from lotus_nb.data.core import positions_of
from lotus_nb.data.digits import digits
from lotus_nb.methods.core import list_methods
from lotus_nb.train import digits_task

ROOT = Path(__file__).resolve().parent.parent

# CIFAR-10 with a ResNet-20: settings of the authors where they fit into three minutes on one core, with fewer epochs or steps where they do not. Not tuned.
CIFAR10 = {
    'finetune': dict(recipe='ssd', epochs=3),
    'neggrad': dict(recipe='scrub-small', epochs=1),
    'lotus': dict(recipe='resnet18', epochs=5),
    'relabel': dict(recipe='ssd-repo', epochs=2),
    'bad_teacher': dict(recipe='official'),
    'scrub': dict(recipe='official-large', epochs=2, msteps=1),
    'ssd': dict(recipe='resnet18'),
    'unsir': dict(recipe='mufac'),
    'salun': dict(recipe='cifar10', epochs=2),
    'l1_sparse': dict(recipe='official', epochs=3),
    'no_t': dict(recipe='unlearn-sparse', epochs=3),
    'msg': dict(recipe='challenge', epochs=2),
    'ct': dict(recipe='challenge', epochs=2),
    'delete': dict(recipe='cifar10'),
    'sfron': dict(recipe='cifar10', steps=400),
    'jit': dict(recipe='vgg11', lr=1e-6),          # with the 3e-4 for VGG-11 the loss becomes NaN on this network, and 1e-5 destroys it
    'amun': dict(recipe='cifar10', epochs=1, steps=5, eps=.1),
    'dual_optim': dict(recipe='cifar10-scrub', settings=dict(epochs=2, msteps=1, decay_epochs=(), opt='adam', lr=1e-4, wd=5e-4, gamma=1., alpha=.5, t=1.)),
}

# Methods that have a form of their own for whole classes: as their authors give it, at the batch size of the other methods on digits
CLASSES = {m: dict(recipe='class', batch_size=64) for m in ('lotus', 'unsir')}


def digits_without(seed, folder=None, *, forget, device='cpu'):
    "The task of digits, with another share to forget, or all images of a class."
    chosen = positions_of(digits(seed).train, forget.removeprefix('class:')) if forget.startswith('class:') else float(forget)
    return digits_task(seed, chosen, folder=folder, device=device, gold2=True)


def folder_of(name, forget):
    "Where the rows of a run go: `digits`, `digits-50`, `digits-class-3`, `cifar10`."
    if forget is None: return name
    return f"{name}-{forget.replace(':', '-') if forget.startswith('class:') else f'{float(forget)*100:g}'}"


def jobs(name, root, device, forget=None):
    "Tasks, methods and seeds of a run."
    if name == 'digits':
        task = partial(digits_task, device=device, gold2=True) if forget is None else partial(digits_without, forget=forget, device=device)
        plan = CLASSES if forget and forget.startswith('class:') else {}
        methods = {m: (m, plan.get(m, {})) for m in list_methods()}
        return dict(tasks={folder_of(name, forget): task}, methods=methods, seeds=range(10), recipe='digits')
    task = partial(image_task, data='cifar10', root=root, model='cifar_resnet20', weights=None, gold='train', forget='.1',
                   recipe='cifar-resnet20-short', batch_size=128, device=device)
    plan = {m: CIFAR10.get(m, {}) for m in sorted({*CIFAR10, *list_methods()})}             # a new method runs with its defaults
    return dict(tasks={'cifar10': task}, methods={m: (m, h) for m, h in plan.items()}, seeds=[0])


def sha256(file): return hashlib.sha256(file.read_bytes()).hexdigest()


def write(frame, name, work, out, command, tasks, seeds):
    "Rows, and a note of how they came about."
    cells = [json.loads(f.read_text())['facts'] for f in sorted((work/'cells').glob('*.json'))]
    forgotten = {f'{t} seed {s}': digest(make(s, folder=work/'models').forget.ids) for t, make in tasks.items() for s in seeds}
    note = dict(command=command, **provenance(), cells=len(cells), seeds=list(seeds),
                made=sorted({f'{c.get("commit")} on {c.get("device_name")}, {c.get("threads")} threads' for c in cells}),
                forget_ids=forgotten, weights={f.name: sha256(f) for f in sorted((work/'models').glob('*.safetensors'))})
    with atomic(out/'results.csv') as tmp: frame[ROWS].to_csv(tmp, index=False)
    shutil.copyfile(work/'checks.csv', out/'checks.csv')
    with atomic(out/'provenance.json') as tmp: tmp.write_text(json.dumps(note, indent=1, default=str) + '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('name', choices=['digits', 'cifar10'])
    p.add_argument('--forget', help="of digits: a share other than a tenth, or 'class:3'")
    p.add_argument('--root', help='folder with the data')
    p.add_argument('--device', default='cpu')
    p.add_argument('--threads', type=int, help='threads of torch; results of a CPU depend on them in the last digits')
    p.add_argument('--out', type=Path, default=ROOT/'results')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    if a.forget and a.name != 'digits': p.error('--forget is for digits; of CIFAR-10 a tenth is forgotten')
    name = folder_of(a.name, a.forget)
    work, how = ROOT/'.cache'/'results'/name, jobs(a.name, a.root, a.device, a.forget)
    with show_progress(): frame = bench(out=work, **how)
    write(frame, name, work, a.out/name, f'python tools/results.py {a.name}' + (f' --forget {a.forget}' if a.forget else ''), how['tasks'], how['seeds'])


if __name__ == '__main__': main()
