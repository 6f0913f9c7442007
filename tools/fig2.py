"""Store what Figure 2 shows of a run: the entropies of four models' answers, in `results/NAME/evidence/`.

    python tools/fig2.py cifar10                                             # from what tools/results.py cifar10 left in .cache/
    python tools/fig2.py resnet18-cifar100-10 --work lotus-paper/work        # from what lotus-nb paper --item fig2 left there

One file for each seed that the work folder has all four models of: natural logarithms of the entropies (nats), float16, in the order of the evidence. A logarithm of -inf is an
entropy of zero.
"""
import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

from lotus_nb.bench import evidence_file
from lotus_nb.core import atomic, digest, provenance
from lotus_nb.metrics.core import entropy, load_evidence

ROOT = Path(__file__).resolve().parent.parent
MODELS = ('noop', 'gold', 'relabel', 'lotus')
PARTS = ('forget', 'retain', 'val', 'test')


def find(work, name, seed, method):
    "Evidence as `bench` or as the protocol keeps it, None where there is neither."
    from lotus_nb.protocol import compact_stem, load_compact          # which is much to import for those who only `read`
    file, stem = evidence_file(work, name, seed, method), compact_stem(work, name, seed, method)
    if file.exists(): return load_evidence(file)
    return load_compact(stem)[0] if stem.with_name(f'{stem.name}.0.npz').exists() else None


def logs(ev):
    "Part → ln entropy of each answer, in float16."
    with np.errstate(divide='ignore'): return {p: np.log(entropy(ev.log_probs(p))).astype(np.float16) for p in PARTS}


def seeds_of(work, name):
    "Seeds that the work folder has evidence of."
    return sorted({int(f.name.split('-s')[-1].split('.')[0]) for f in (Path(work)/'evidence').glob(f'{name}-noop-s*')})


def store(name, work, out, command):
    "Write the seeds that are whole, and a note of what they are; the seeds written."
    note = dict(command=command, **provenance(), unit='ln of nats', models=list(MODELS), seeds={})
    for seed in seeds_of(work, name):
        found = {m: find(work, name, seed, m) for m in MODELS}
        lack = [m for m, ev in found.items() if ev is None or not set(PARTS) <= set(ev.parts)]
        if lack: print(f"seed {seed}: left, no whole evidence of {', '.join(lack)}"); continue
        file = out/f's{seed}.npz'
        with atomic(file) as tmp, open(tmp, 'wb') as f: np.savez_compressed(f, **{f'{m}.{p}': v for m, ev in found.items() for p, v in logs(ev).items()})
        one = found['noop']
        note['seeds'][str(seed)] = dict(
            weights={m: ev.model for m, ev in found.items()}, transform=one.transform, stored_as=one.dtype, n={p: len(one.labels[p]) for p in PARTS},
            forget_ids=digest(one.ids['forget']), sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    if not note['seeds']: raise SystemExit(f"'{work}' has no evidence of {', '.join(MODELS)} for {name}. Run tools/results.py or lotus-nb paper --item fig2 first.")
    with atomic(out/'provenance.json') as tmp: tmp.write_text(json.dumps(note, indent=1) + '\n')
    return list(note['seeds'])


def read(folder):
    "Seed → model → part → ln entropy, of a folder that `store` wrote; empty where there is none."
    out = {}
    for file in sorted(Path(folder).glob('s*.npz')):
        with np.load(file, allow_pickle=False) as z: got = {k: z[k].astype(np.float64) for k in z.files}
        out[int(file.stem[1:])] = {m: {p: got[f'{m}.{p}'] for p in PARTS} for m in MODELS}
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('name', help='folder of `results/`, which is what the run is called')
    p.add_argument('--work', type=Path, help='work folder of the run; default: .cache/results/NAME')
    p.add_argument('--out', type=Path, help='default: results/NAME/evidence')
    a = p.parse_args()
    command = f'python tools/fig2.py {a.name}' + (' --work WORK' if a.work else '')
    print('seeds', *store(a.name, a.work or ROOT/'.cache'/'results'/a.name, a.out or ROOT/'results'/a.name/'evidence', command))


if __name__ == '__main__': main()
