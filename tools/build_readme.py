"""Write README.md from the processed index notebook with pandoc.

Usage: python tools/build_readme.py [--check]

Links lead to the documentation address in pyproject.toml. Pictures the notebook names stay where they are, below nbs/;
pictures its cells drew are written to nbs/images/readme_<n>.png, so that GitHub shows them.
"""
import argparse
import posixpath
import re
import tomllib
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

from build_site import header
from nbmd import HERE, SiteError, load_config, load_page, page_markdown, pandoc

MEND = 'python tools/proc_nbs.py && python tools/build_readme.py'
CODE = r'(^ *```.*?^ *```$)'
LINK = r'(\]\(|\b(?:src|href)=")([^)"\s]+)([)"])'


def settings(root: Path) -> tuple[str, str]:
    "The notebooks' folder and the documentation's address, from pyproject.toml."
    toml = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))
    return toml['tool']['nbdev'].get('nbs_path', 'nbs'), toml['project']['urls']['Documentation'].rstrip('/')


def load_index(root: Path, proc: Path, nbs: str):
    "The processed index notebook, if it is there and not older than its source."
    done, source = proc/'index.ipynb', root/nbs/'index.ipynb'
    if not done.exists() or (source.exists() and source.stat().st_mtime > done.stat().st_mtime):
        raise SiteError(f"{proc.name}/index.ipynb is missing or older than {nbs}/index.ipynb; run: {MEND}")
    return load_page(proc, 'index.ipynb')


def readme_link(link: str, proc: Path, nbs: str, home: str, files: dict) -> str:
    "Where `link` in the index notebook leads when it stands in the README."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path: return link
    path = posixpath.normpath(unquote(parts.path)).lstrip('/')
    fragment = f'#{parts.fragment}' if parts.fragment else ''
    if path.endswith('.ipynb') and (proc/path).exists(): return f'{home}/{load_page(proc, path).url}{fragment}'
    if path.endswith(('.html', '.html.md')): return f'{home}/{path}{fragment}'
    if f'{nbs}/{path}' in files or (proc/path).exists(): return f'{nbs}/{path}'
    raise SiteError(f"index.ipynb: link to no page: {link}")


def relink(text: str, fix) -> str:
    "Apply `fix` to every link outside code blocks."
    parts = re.split(CODE, text, flags=re.DOTALL | re.MULTILINE)
    return ''.join(p if i % 2 else re.sub(LINK, lambda m: m[1] + fix(m[2]) + m[3], p) for i, p in enumerate(parts))


def build(root: Path, proc: Path) -> dict[str, bytes]:
    "The README and its pictures, by path below `root`."
    nbs, home = settings(root)
    page, numbers, files = load_index(root, proc, nbs), count(1), {}
    def save(name, data):
        name = f'images/readme_{next(numbers)}{Path(name).suffix}'
        files[f'{nbs}/{name}'] = data
        return name
    source = header(page) + page_markdown(page, save, load_config(proc))
    text = pandoc(source, 'gfm', page.path, f'--template={HERE/"page.md"}')
    text = relink(text, lambda link: readme_link(link, proc, nbs, home, files))
    return files | {'README.md': text.encode()}


def stale(root: Path, files: dict[str, bytes]) -> list[str]:
    "Paths below `root` that differ from `files`, and pictures no README shows any more."
    old = [p.relative_to(root).as_posix() for p in root.glob(f'{settings(root)[0]}/images/readme_*')]
    changed = [name for name, data in files.items() if not (root/name).exists() or (root/name).read_bytes() != data]
    return sorted(changed + [p for p in old if p not in files])


def write(root: Path, files: dict[str, bytes]):
    "Write what changed and remove pictures no longer shown."
    for name in stale(root, files):
        (root/name).unlink(missing_ok=True)
        if name not in files: continue
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(files[name])


def main(argv=None):
    "Write the README, or with `--check` say whether it is up to date."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help="write nothing; exit with 1 if something would change")
    parser.add_argument('--root', type=Path, default=Path(__file__).resolve().parent.parent, help="the repository")
    args = parser.parse_args(argv)
    try: files = build(args.root, args.root/'_proc')
    except SiteError as e: raise SystemExit(f"build_readme: {e}") from None
    differing = stale(args.root, files)
    if args.check and differing: raise SystemExit(f"build_readme: out of date: {', '.join(differing)}; run: {MEND}")
    if not args.check: write(args.root, files)
    print(f"README.md {'is up to date' if not differing else 'written'}")


if __name__ == '__main__': main()
