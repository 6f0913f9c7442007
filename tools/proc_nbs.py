"Run nbdev's documentation stage into `_proc/`, without its attempt to install Quarto. Usage: python tools/proc_nbs.py"
import os
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import _build_modidx, nbglob
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

HINT = """This stage runs exported cells and cells holding an import, and no others, then documents what was exported:
put imports in cells of their own, and annotate with names the notebook imports (a quoted name must exist too)."""


def missing(nbs: Path, proc: Path) -> list[str]:
    "Notebooks under `nbs` that have no processed copy under `proc`."
    pages = [Path(p).relative_to(nbs) for p in nbglob(nbs, as_path=True)]
    return sorted(str(p) for p in pages if not (proc/p).exists())


def process(n_workers: int = 2) -> Path:
    "Write the processed notebooks, executing exported and import cells, and return their folder."
    cfg = get_config()
    os.chdir(cfg.config_path)
    refresh_quarto_yml()
    _build_modidx()
    nbdev_sidebar.__wrapped__(path=cfg.nbs_path)
    try: proc = proc_nbs(str(cfg.nbs_path), n_workers=n_workers, force=True)
    except Exception as e: raise SystemExit(f"proc_nbs: {e}\n{HINT}") from None
    for page in proc.rglob('*.ipynb'):                 # a class documented in its own notebook lives in `__main__` there
        page.write_text(page.read_text(encoding='utf-8').replace('__main__.', ''), encoding='utf-8')
    if lost := missing(cfg.nbs_path, proc): raise SystemExit(f"nbdev processed all but: {', '.join(lost)}")
    return proc


if __name__ == '__main__':
    proc = process(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(f"{len(list(proc.rglob('*.ipynb')))} notebooks processed into {proc.name}/")
