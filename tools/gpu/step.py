"""One step of the paper's runs, for a machine that is lent for a few minutes: bring in what earlier steps left, work, leave what is done.

    python tools/gpu/step.py --root DATA --minutes 8                        # on one machine, again and again: exit status 75 says that something remains
    python tools/gpu/step.py --root DATA --bring pieces --leave "$OUT"      # on machines that come and go

Without `--run`, the runs of `PLAN` are done in their order; `--scale fast` rests on a recipe that `tools/recipes.py` compares with the long one, and is to wait for it. It
needs torch, timm, scikit-learn, pandas, SciPy and safetensors, and nothing is installed: the package is read from this checkout. What comes and goes is in files of at most 15 MiB;
data may lie in several archives (`cifar10.part0.zip`, …), together or brought one after the other.
Not yet run on a GPU; tests/test_protocol.py runs it on a CPU.
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch

from lotus_nb.protocol import SPLITS, carry_in, carry_out, cells_of, command_line, run_cells

# ResNet-18 first, 10 % and then 50 %; as described and as published, every method, three seeds.
PLAN = ('resnet18-cifar10-10', 'resnet18-cifar100-10', 'resnet18-cifar10-50', 'resnet18-cifar100-50')


def known(scale):
    "Every run of the paper by its name, with random forget sets and with the paper's fixed one, with the ViT that is trained from random weights and with the small stand-ins."
    from dataclasses import replace
    cells = [c for here in ((True, False) if scale == 'tiny' else (True,)) for split in SPLITS for c in cells_of(scale=scale, split=split, cifar_here=here)]
    return {c.name: c for c in [*cells, *(replace(c, model='vit_random') for c in cells if c.model == 'vit')]}


def chosen(names, scale, seeds):
    from dataclasses import replace
    cells, suffix = known(scale), '' if scale == 'full' else f'-{scale}'
    names = names or [n + suffix for n in PLAN]
    if odd := [n for n in names if n not in cells]: sys.exit(f"Unknown run '{odd[0]}'. Known: {', '.join(cells)}.")
    return [replace(cells[n], seeds=tuple(seeds)) if seeds else cells[n] for n in names]


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--run', nargs='*', help=f"names of runs, those with the paper's fixed forget set end in -first-k; without it {', '.join(PLAN)}")
    p.add_argument('--scale', default='full', choices=['full', 'fast', 'tiny'])
    p.add_argument('--root', type=Path, help='folder with the data')
    p.add_argument('--minutes', type=float, default=8., help='length of the step')
    p.add_argument('--kind', nargs='*', default=['described', 'as-published'])
    p.add_argument('--method', nargs='*', help='only these; without it, all')
    p.add_argument('--seed', nargs='*', type=int, help="without it, the paper's three")
    p.add_argument('--work', type=Path, default=ROOT/'.cache'/'protocol')
    p.add_argument('--results', type=Path, default=ROOT/'results')
    p.add_argument('--bring', type=Path, nargs='*', default=[], help='folders that an earlier step left; pieces may come in several')
    p.add_argument('--leave', type=Path, help='folder for all that this step leaves, in files below 16 MiB')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--threads', type=int)
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    for folder in a.bring:
        for lost in carry_in(folder, a.work): print(f'{lost}: pieces missing or damaged, done again')
    given = {o.option_strings[0]: v for o in p._actions if (v := getattr(a, o.dest, None)) != o.default}
    command = command_line('python tools/gpu/step.py', given, again=False)
    done = run_cells(chosen(a.run, a.scale, a.seed), a.work, a.leave/'results' if a.leave else a.results, root=a.root, device=a.device,
                     methods=a.method, kinds=a.kind, minutes=a.minutes, say=lambda text: print(text, flush=True), command=command)
    if a.leave: carry_out(a.work, a.leave/'pieces')
    for name, why in done.left.items(): print(f'Not run, {name}: {why}')
    print(done.remains or 'Finished.')
    sys.exit(0 if done.finished else 75)


if __name__ == '__main__': main()
