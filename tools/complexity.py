"""Measure how the work of methods grows with sizes, epochs, parameters, classes and pixels: operations and bytes exactly, processor time in repetitions.

    python tools/complexity.py                     # all that is missing, into results/complexity; some twelve minutes of one core
    python tools/complexity.py --reps 2 --out FOLDER
    python tools/complexity.py --device cuda       # into results/complexity-cuda; not yet run on a GPU

Operations are torch's own counts of products of matrices and convolutions, bytes those of tensors that live at the same time; both are the same on every machine.
Every method of the registry is counted; the clock runs for those of the paper only. On a CPU time is processor time (`time.process_time`), since other work on the machine
makes wall-clock time worthless; on a GPU it is wall-clock time between two synchronisations. Every repetition goes through all points in turn,
so that a busy minute falls on all of them alike. A point that was measured is not measured again: run the command again after it was stopped.
"""
import argparse
import gc
import json
import os
import time
import warnings
import weakref
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lotus_nb.core import atomic, provenance, seeded
from lotus_nb.data.core import Images
from lotus_nb.loop import predict, running
from lotus_nb.methods.bad_teacher import lesson
from lotus_nb.methods.core import get_method, list_methods
from lotus_nb.methods.salun import saliency
from lotus_nb.methods.ssd import importances
from lotus_nb.methods.unsir import unlike_images
from lotus_nb.metrics.core import Evidence
from lotus_nb.metrics.divergence import divergence, rf_jsd, zrf
from lotus_nb.models import create_model, n_params
from lotus_nb.parts import distill_kl, reinit
from lotus_nb.task import TaskView, UnlearnTask, student_of, teacher_of

ROOT = Path(__file__).resolve().parent.parent
BASE = dict(n_f=128, n_r=384, n_v=128, epochs=1, batch=64, width=16, classes=10, side=16, noise=4)
AXES = dict(n_f=(64, 128, 256, 512), n_r=(192, 384, 768, 1536), epochs=(1, 2, 4, 8), width=(16, 32, 64, 128), classes=(10, 100, 1000, 10_000), side=(8, 16, 32, 64),
            batch=(16, 32, 64, 128))
OWN = dict(n_v=(64, 128, 256, 512), noise=(1, 2, 4, 8))        # axes that one piece has alone
METHODS = ('finetune', 'neggrad', 'relabel', 'scrub', 'bad_teacher', 'ssd', 'unsir', 'salun', 'lotus')
OTHERS = tuple(m for m in list_methods(controls=True) if m not in (*METHODS, 'noop'))      # counted, not timed
SETTINGS = dict(lotus=dict(on_overshoot='sharpen'), unsir=dict(impair_epochs=1, repair_epochs=0), ssd={}, scrub=dict(msteps=99), neggrad=dict(beta=.95), jit=dict(samples=4),
                amun=dict(steps=10), sfron=dict(inner=4), retrain=dict(warmup=0))
SIZE10 = {'RF-JSD': dict(n_f=8000, n_u=8000, k=10), 'ZRF': dict(n_f=8000, n_u=8000, k=10), 'pairwise': dict(n_f=250, n_u=250, k=10)}
AXES10 = {p: dict(n_f=n, n_u=n, k=(10, 20, 40, 80), both=(250,)) for p, n in (('RF-JSD', (4000, 8000, 16_000, 32_000)), ('ZRF', (4000, 8000, 16_000, 32_000)), ('pairwise', (125, 250, 500, 1000)))}


def points(timed=True, cpu=True):
    "Piece, axis, value: those that are timed, or all; what NumPy does is the same on every device, and left to the CPU."
    for axis, values in AXES.items():
        for v in values:
            for m in METHODS if timed else METHODS + OTHERS: yield m, axis, v
            for a in AUXILIARY:
                if axis not in ('epochs', 'batch'): yield a, axis, v
    for axis, piece in (('n_v', 'aux: accuracies'), ('noise', 'aux: noise')):
        for v in OWN[axis]: yield piece, axis, v
    for axis in ('n_f', 'n_u', 'k', 'both') if cpu else ():
        for i in range(len(AXES10['ZRF'][axis])):
            for m in SECTION10: yield m, axis, AXES10[m][axis][i]


class Counted(TorchDispatchMode):
    "Operations, and the most bytes of tensors made inside the block that live at the same time."
    def __init__(self): super().__init__(); self.flops = self.live = self.peak = 0; self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, formula = func(*args, **(kwargs or {})), flop_registry.get(func._overloadpacket)
        if formula: self.flops += formula(*args, **(kwargs or {}), out_val=out)
        old = {id(t.untyped_storage()) for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor) and id(s := t.untyped_storage()) not in self.known | old: self.enter(s)
        return out

    def enter(self, s):
        key, n = id(s), s.nbytes()
        self.known.add(key); self.live += n; self.peak = max(self.peak, self.live)
        weakref.finalize(s, self.leave, key, n)

    def leave(self, key, n): self.known.discard(key); self.live -= n


def make_task(c, device='cpu'):
    "A task on noise: what is in the images does not matter to the work."
    n, rng = c['n_f'] + c['n_r'] + c['n_v'], torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, c['side'], c['side']), dtype=torch.uint8, generator=rng)
    images = Images(x.to(device), torch.arange(n).to(device) % c['classes'], mean=(.5,)*3, std=(.5,)*3, source='noise')
    ends = np.cumsum([0, c['n_f'], c['n_r'], c['n_v']])
    forget, retain, val = (images.take(range(a, b)) for a, b in zip(ends, ends[1:]))
    model = create_model('small_cnn', c['classes'], width=c['width'], seed=0).to(device)
    return UnlearnTask(model, forget, retain, val, n_classes=c['classes'], batch_size=c['batch'])


def settings(name, c):
    "Hyper-parameters of a method at a point."
    h = {**get_method(name).defaults, **SETTINGS.get(name, {})}
    for k in ('epochs', 'passes', 'rounds'):
        if k in h: h[k] = c['epochs']
    if name == 'unsir': h['noise_steps'] = c['noise']
    if name == 'sfron': h['steps'] = 8*c['epochs']
    if name == 'dual_optim': h['settings'] = dict(epochs=c['epochs'], msteps=99)
    return h


def method_work(name, c, device='cpu'):
    "A function that runs the method once."
    task, m, h = make_task(c, device), get_method(name), settings(name, c)
    view = TaskView(task, m.parts(h), name)
    view.batch_size = c['batch']
    def prepare(): return student_of(task.model)
    return task, prepare, lambda student: m.fn(student, view, **h)


def _accuracies(task, c):
    return lambda student: (predict(student, task.loader('forget', train=False)), predict(task.model, task.loader('val', train=False)))


def _teachers(task, c):
    bad, batches = teacher_of(reinit(task.model, 0)), list(task.loader('forget', 'retain', train=False))
    return lambda student: [lesson(task.model, bad, b.x, b.forget) for b in batches]


def _kl(task, c):
    z = [torch.randn(c['n_f'] + c['n_r'], c['classes'], device=next(task.model.parameters()).device) for _ in range(2)]
    return lambda student: distill_kl(*z, 1.)


def _noise(task, c):
    batches = list(task.loader('forget', train=False, batch_size=c['batch']))
    return lambda student: [unlike_images(student, b.x, c['noise'], .01) for b in batches]


def _importances(parts): return lambda task, c: lambda student: importances(student, task.loader(*parts, train=False, batch_size=c['batch']))


def _saliency(task, c): return lambda student: saliency(student, task.loader('forget', train=False, batch_size=c['batch']), .5)


AUXILIARY = {'aux: accuracies': _accuracies, 'aux: teachers': _teachers, 'aux: divergence': _kl, 'aux: noise': _noise, 'aux: importances, forget': _importances(['forget']),
             'aux: importances, all': _importances(['forget', 'retain']), 'aux: saliency': _saliency}


def evidence(rng, classes, **parts):
    "Answers of a made-up model."
    z = {p: rng.standard_normal((n, classes), dtype=np.float32) for p, n in parts.items()}
    return Evidence(z, {p: np.arange(len(a)) % classes for p, a in z.items()}, {p: np.arange(len(a)) for p, a in z.items()})


def pairwise(new, original):
    "What would cost n_f·n_u·k: each answer about a forget image against each about a test image."
    p, q = new.log_probs('forget'), original.log_probs('test')
    return float(np.mean([divergence(np.broadcast_to(row, q.shape), q, log=True).mean() for row in p]))


SECTION10 = {'RF-JSD': lambda e: rf_jsd(e[0], e[1]), 'ZRF': lambda e: zrf(e[0], e[2]), 'pairwise': lambda e: pairwise(e[0], e[1])}


def work(piece, axis, value, device='cpu'):
    "What to prepare, what to run, and facts about the point."
    if piece in SECTION10:
        c, rng = {**SIZE10[piece], **({'n_f': value, 'n_u': value} if axis == 'both' else {axis: value})}, np.random.default_rng(0)
        e = [evidence(rng, c['k'], forget=c['n_f'], test=c['n_u']) for _ in range(3)]
        return (lambda: e), SECTION10[piece], c
    c = {**BASE, axis: value}
    if piece in METHODS + OTHERS: task, prepare, run = method_work(piece, c, device)
    else:
        task = make_task(c, device)
        prepare, run = (lambda: student_of(task.model)), AUXILIARY[piece](task, c)
    return prepare, run, {**c, 'parameters': n_params(task.model), 'N_i': 3*c['side']**2}


def clock(prepare, run, least=.04, device='cpu'):
    "Seconds of one run, of the processor or, elsewhere, on the wall; short ones are run several times."
    def now():
        if device == 'cpu': return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()
    total, n = 0., 0
    while total < least:
        x = prepare()
        with seeded(0), running(amp=False):
            start = now(); run(x); total += now() - start
        n += 1
    return float(f'{total/n:.6g}')


def exact(prepare, run):
    "Operations, bytes, and images of one run."
    x = prepare()
    gc.collect()
    with seeded(0), running(amp=False) as r, Counted() as seen: run(x)
    return dict(flops=seen.flops, bytes=seen.peak, **{k: r.cost[k] for k in ('forward', 'backward', 'steps', 'seen_forget', 'seen_retain')})


def read(path): return pd.read_csv(path).to_dict('records') if path.exists() else []


def write(path, rows):
    with atomic(path) as tmp: pd.DataFrame(rows).convert_dtypes().to_csv(tmp, index=False)


def one_round(path, done, measure, label, started, limit, all_points, device):
    "Measure every point that is missing; returns whether the time sufficed."
    have = {(r['piece'], r['axis'], r['value']) for r in done if all(r.get(k) == v for k, v in label.items())}
    todo, last = [p for p in all_points if p not in have], time.time()
    for i, p in enumerate(todo):
        prepare, run, facts = work(*p, device)
        done.append(dict(zip(('piece', 'axis', 'value'), p), **label, **measure(prepare, run, facts)))
        if time.time() - last > 20: write(path, done); last = time.time(); print(f'{label or "counts"}: {i + 1}/{len(todo)}, {time.process_time() - started:.0f} s of processor time', flush=True)
        if time.process_time() - started > limit: write(path, done); return False
    write(path, done)
    return True


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--reps', type=int, default=5, help='repetitions of every point')
    p.add_argument('--limit', type=float, default=1200, help='processor seconds after which to stop; another call goes on')
    p.add_argument('--device', default='cpu', help="'cpu', 'cuda', …")
    p.add_argument('--out', type=Path, help='folder; without it results/complexity, and for another device results/complexity-DEVICE')
    a = p.parse_args()
    if a.device != 'cpu' and not (torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == a.device.split(':')[0]):
        p.error(f"torch sees no device '{a.device}' here; use --device cpu")
    cpu, out = a.device == 'cpu', a.out or ROOT/'results'/('complexity' if a.device == 'cpu' else f'complexity-{a.device.split(":")[0]}')
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore', message='SSD dampened no weight')
    started, about = time.process_time(), out/'about.json'
    fresh = dict(command='python tools/complexity.py' + ('' if cpu else f' --device {a.device}'), clock='processor time of one thread' if cpu else 'wall clock, synchronised', sessions=[])
    note = json.loads(about.read_text()) if about.exists() else fresh
    note.update(base=BASE, base_section10=SIZE10)
    note['sessions'].append(dict(**provenance(a.device), processes_waiting=os.getloadavg()[1]))
    out.mkdir(parents=True, exist_ok=True)
    with atomic(about) as tmp: tmp.write_text(json.dumps(note, indent=1) + '\n')
    counts, times = read(out/'counts.csv'), read(out/'times.csv')
    rest = started, a.limit
    whole = one_round(out/'counts.csv', counts, lambda prepare, run, facts: {**facts, **exact(prepare, run)}, {}, *rest, points(False, cpu), a.device)
    for rep in range(a.reps):
        whole = whole and one_round(out/'times.csv', times, lambda prepare, run, facts: dict(seconds=clock(prepare, run, device=a.device)), dict(rep=rep), *rest, points(True, cpu), a.device)
    note['sessions'][-1].update(processor_seconds=round(time.process_time() - started), complete=whole)
    with atomic(about) as tmp: tmp.write_text(json.dumps(note, indent=1) + '\n')
    print('complete' if whole else 'stopped at the limit; run the command again to go on')


if __name__ == '__main__': main()
