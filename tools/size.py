"""Measure what metrics of one model need, for evidence of the size of CIFAR-10 and for 50,000 images of 1,000 classes: seconds, and memory beyond the evidence itself.

    python tools/size.py                       # both, and writes results/size
    python tools/size.py --scale .1 --out /tmp/size

Each size runs in a process of its own, so that one's memory is not the other's. Times are of the machine named in the file, and of what else it did
meanwhile; processor seconds are less so; memory is counted by the allocator and does not depend on either.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
SIZES = {  # images of each part, classes, and what the logits are kept in
    'cifar10': (dict(forget=5_000, retain=45_000, val=5_000, test=5_000), 10, 'float32'),
    'imagenet': (dict(forget=5_000, retain=35_000, val=5_000, test=5_000), 1_000, 'float16'),
}
WHO = ('new', 'original', 'gold', 'random')


def made(sizes, k, dtype, seed, scale=1.):
    "Evidence of a made-up model that is surer of what it was trained on."
    import numpy as np

    from lotus_nb.metrics.core import Evidence
    r, z, y = np.random.default_rng(seed), {}, {}
    for p, n in sizes.items():
        n = max(2, round(scale*n))
        y[p] = np.random.default_rng(len(p)).integers(0, k, n)
        z[p] = r.standard_normal((n, k), dtype=np.float32)
        z[p][np.arange(n), y[p]] += 6 if p in ('forget', 'retain') else 4
        z[p] = z[p].astype(dtype)
    return Evidence(z, y, {p: np.arange(len(a)) for p, a in y.items()})


def measured(name, scale):
    "All metrics of one model beside its references: seconds of each, and the peak of memory beyond the evidence."
    import numpy as np

    from lotus_nb.evaluation import judge
    from lotus_nb.metrics.core import list_metrics, measure
    seen = {w: made(*SIZES[name], i, scale) for i, w in enumerate(WHO)}
    run = SimpleNamespace(seconds=1., cost={}, peak_bytes=1)
    own, rows = sum(a.nbytes for e in seen.values() for a in e.logits.values()), {}
    for metric in list_metrics():
        begun, wall = time.process_time(), time.perf_counter()
        frame, _ = measure([metric], **seen, run=run)
        if len(frame): rows[metric] = dict(value=float(frame.value[0]), processor=time.process_time() - begun, wall=time.perf_counter() - wall)
    for metric in rows:
        tracemalloc.start()
        measure([metric], **seen, run=run)
        rows[metric]['peak'] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    found = {k: e for k, e in seen.items() if k in ('new', 'original', 'gold')}
    page = dict(zip(('processor', 'wall', 'peak'), spent(lambda: judge(found, ['forget_accuracy']))))
    whole = sum(len(a) for a in seen['new'].labels.values())
    return dict(images=whole, classes=int(SIZES[name][1]), stored=SIZES[name][2], evidence=own, largest=max(a.nbytes for a in seen['new'].logits.values()),
                peak=max(r['peak'] for r in rows.values()), processor=sum(r['processor'] for r in rows.values()), wall=sum(r['wall'] for r in rows.values()),
                resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024, float64=int(8*np.prod(seen['new'].logits['retain'].shape)), one=sum(a.nbytes for a in seen['new'].logits.values()), metrics=rows, judge=page)


def spent(run):
    "Processor seconds, seconds, and the peak of memory of another run."
    begun, wall = time.process_time(), time.perf_counter()
    run()
    took = time.process_time() - begun, time.perf_counter() - wall
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return *took, peak


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--scale', type=float, default=1., help='share of the images')
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--out', type=Path, default=ROOT/'results'/'size')
    p.add_argument('--one', choices=list(SIZES), help='measure in this process, and print')
    a = p.parse_args()
    if a.one: return print(json.dumps(measured(a.one, a.scale)))
    from lotus_nb.core import atomic, provenance
    env = {**os.environ, 'OMP_NUM_THREADS': str(a.threads), 'PYTHONPATH': str(ROOT)}
    found = {}
    for name in SIZES:
        cmd = [sys.executable, __file__, '--one', name, '--scale', str(a.scale)]
        found[name] = json.loads(subprocess.run(cmd, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)
    busy = os.getloadavg()[1]
    note = dict(command='python tools/size.py', scale=a.scale, **provenance(), processes_waiting=busy, sizes=found)
    note['threads'] = a.threads
    with atomic(a.out/'size.json') as tmp: tmp.write_text(json.dumps(note, indent=1, default=str) + '\n')


if __name__ == '__main__': main()
