"Read a processed notebook and write it as the Markdown pandoc and Quarto read; for build_site.py and build_readme.py."
import base64
import html
import json
import posixpath
import re
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import yaml

HERE = Path(__file__).parent/'site'
READER = 'markdown+autolink_bare_uris'
IMAGES = {'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpg'}
MIMES = ['text/html', 'text/markdown', 'text/latex', *IMAGES, 'text/plain']


class SiteError(Exception):
    "A mistake in the notebooks or in `_quarto.yml` that their author must mend."


# Reading ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Page:
    "A processed notebook, and the address it gets on the site."
    path: str    # `engine/00_core.ipynb`, below `_proc/`
    url: str     # `engine/core.html`, below the site's root
    meta: dict   # Its front matter
    cells: list  # Its cells, without the front matter

    @property
    def title(self): return str(self.meta.get('title') or Path(self.path).stem)


def text_of(value) -> str:
    "The text of a notebook field, which is a string or a list of lines."
    return value if isinstance(value, str) else ''.join(value or [])


def merge(a: dict, b: dict) -> dict:
    "`a` with the entries of `b` laid over it, level by level."
    shared = [k for k in a.keys() & b.keys() if isinstance(a[k], dict) and isinstance(b[k], dict)]
    return {**a, **b, **{k: merge(a[k], b[k]) for k in shared}}


def load_config(proc: Path) -> dict:
    "`_quarto.yml` together with the files it names under `metadata-files`."
    if not (proc/'_quarto.yml').exists(): raise SiteError(f"{proc}/_quarto.yml is missing; run tools/proc_nbs.py.")
    config = yaml.safe_load((proc/'_quarto.yml').read_text(encoding='utf-8')) or {}
    for name in config.get('metadata-files', []):
        if not (proc/name).exists(): raise SiteError(f"_quarto.yml names {name} under metadata-files; it is missing.")
        config = merge(yaml.safe_load((proc/name).read_text(encoding='utf-8')) or {}, config)
    return config


def front_matter(cell) -> dict | None:
    "The YAML of a front-matter cell, or None for any other cell."
    found = re.fullmatch(r'\s*---\n(.*?)\n---\s*', text_of(cell['source']), re.DOTALL)
    return yaml.safe_load(found[1]) if found and cell['cell_type'] == 'raw' else None


def load_page(proc: Path, path: str) -> Page:
    "Read one processed notebook."
    cells = json.loads((proc/path).read_text(encoding='utf-8'))['cells']
    meta = front_matter(cells[0]) if cells else None
    name = (meta or {}).get('output-file', f'{Path(path).stem}.html')
    return Page(path, posixpath.join(posixpath.dirname(path), name), meta or {}, cells[meta is not None:])


# Cells to Markdown --------------------------------------------------------------------------------------------------

def split_options(source: str, where: str) -> tuple[dict, str]:
    "The `#| key: value` lines that open a cell, and the code below them."
    lines = source.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith('#|')), len(lines))
    try: options = yaml.safe_load('\n'.join(line[2:].removeprefix(' ') for line in lines[:n])) or {}
    except yaml.YAMLError as e: raise SiteError(f"{where}: the `#|` lines are not YAML, quote the value: {e}") from None
    if not isinstance(options, dict): raise SiteError(f"{where}: each `#|` line must read `#| key: value`: {options!r}")
    return options, '\n'.join(lines[n:]).strip('\n')


def fenced(text: str, classes: str) -> str:
    "A code block whose fence is longer than any run of backticks in `text`."
    ticks = '`'*max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return f'{ticks} {{{classes}}}\n{text}\n{ticks}'


def div(classes: str, body: str) -> str:
    "A pandoc div."
    return f'::: {{{classes}}}\n\n{body}\n\n:::'


def code_markdown(code: str, options: dict, language: str) -> str:
    "A cell's source, folded if it asks for it."
    if not code or options.get('echo') is False: return ''
    block, fold = fenced(code, f'.{language} .cell-code'), options.get('code-fold')
    if not fold: return block
    summary = html.escape(str(options.get('code-summary', 'Code')))
    opening = f'<details class="code-fold"{" open" if fold == "show" else ""}><summary>{summary}</summary>'
    return '\n\n'.join([fenced(opening, '=html'), block, fenced('</details>', '=html')])


def clean(text: str) -> str:
    "Terminal text as it would look at the end: no colours, and only what a carriage return left standing."
    text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text)
    return '\n'.join(line.rstrip('\r').rsplit('\r', 1)[-1] for line in text.split('\n')).rstrip()


def terminal(text: str, kind: str) -> str:
    "Printed text as a block."
    return div(f'.cell-output .cell-output-{kind}', fenced(clean(text), '.output')) if clean(text) else ''


def png_size(data: bytes) -> dict:
    "Width and height from a PNG's header."
    return dict(zip(('width', 'height'), struct.unpack('>II', data[16:24]))) if data[:4] == b'\x89PNG' else {}


def image_markdown(mime: str, out: dict, caption: str, alt: str, save) -> str:
    "Save an image and show it at the size its metadata gives."
    value = text_of(out['data'][mime])
    data = value.encode() if mime == 'image/svg+xml' else base64.b64decode(value)
    size = out.get('metadata', {}).get(mime) or png_size(data)
    attrs = [f'{k}={round(float(size[k]))}' for k in ('width', 'height') if k in size]
    if alt: attrs.append(f'alt="{html.escape(alt)}"')
    return div('.cell-output .cell-output-display', f'![{caption}]({save(data, IMAGES[mime])}){{{" ".join(attrs)}}}')


def display_markdown(out: dict, options: dict, caption: str, alt: str, save) -> str:
    "The richest representation of one displayed value."
    mime = next((m for m in MIMES if m in out['data']), None)
    if mime is None: return ''
    if mime in IMAGES: return image_markdown(mime, out, caption, alt, save)
    text = text_of(out['data'][mime])
    if mime == 'text/plain': return terminal(text, 'display')
    if mime == 'text/html':
        text = re.sub(r'<style scoped>.*?</style>', '', text, flags=re.DOTALL)
        return div('.cell-output .cell-output-display', fenced(text, '=html'))
    return text if options.get('output') == 'asis' else div('.cell-output .cell-output-display', text)


def output_markdown(out: dict, options: dict, caption: str, alt: str, save) -> str:
    "One output of a cell."
    if out['output_type'] == 'error': return terminal('\n'.join(out['traceback']), 'error')
    if out['output_type'] != 'stream': return display_markdown(out, options, caption, alt, save)
    if out['name'] == 'stderr' and options.get('warning') is False: return ''
    text = text_of(out['text'])
    return clean(text) if options.get('output') == 'asis' else terminal(text, out['name'])


def captions(outputs: list, options: dict) -> list[tuple[str, str]]:
    "Caption and alt text of each output: one for the last figure, or a list with one for each figure."
    figures = [i for i, o in enumerate(outputs) if o.get('data', {}).keys() & IMAGES.keys()]
    def per_figure(key):
        value = options.get(key) or ''
        texts = value if isinstance(value, list) else ['']*(len(figures) - 1) + [value]
        return dict(zip(figures, map(str, texts)))
    caption, alt = per_figure('fig-cap'), per_figure('fig-alt')
    return [(caption.get(i, ''), alt.get(i, '')) for i in range(len(outputs))]


def cell_markdown(cell: dict, where: str, save, defaults: dict) -> str:
    "One cell as pandoc's Markdown; `save(data, suffix)` stores an image and returns its address."
    source = text_of(cell['source'])
    if cell['cell_type'] == 'markdown': return source
    if cell['cell_type'] != 'code': return ''
    options, code = split_options(source, where)
    options = {**defaults, **options}
    if options.get('include') is False: return ''
    outputs = [] if options.get('output') is False else cell.get('outputs', [])
    parts = [code_markdown(code, options, cell.get('metadata', {}).get('language', 'python'))]
    parts += [output_markdown(o, options, *text, save) for o, text in zip(outputs, captions(outputs, options))]
    body = '\n\n'.join(filter(None, parts))
    return body if options.get('output') == 'asis' or not body else div('.cell', body)


def page_markdown(page: Page, save, config: dict) -> str:
    "A whole page as pandoc's Markdown; `save(name, data)` stores an image and returns its address."
    defaults, parts = merge(config, page.meta).get('execute') or {}, []
    for i, cell in enumerate(page.cells):
        def save_here(data, suffix, stem=cell.get('id', i), n=count(1)): return save(f'{stem}-{next(n)}.{suffix}', data)
        parts.append(cell_markdown(cell, f'{page.path}, cell {i}', save_here, defaults))
    return '\n\n'.join(filter(None, parts)) + '\n'


# Pandoc -------------------------------------------------------------------------------------------------------------

@cache
def pandoc_path() -> str:
    "The pandoc that comes with `pypandoc_binary`."
    import pypandoc
    return pypandoc.get_pandoc_path()


def pandoc(text: str, to: str, where: str, *args: str) -> str:
    "Convert Markdown, treating any warning as an error in the page `where`."
    command = [pandoc_path(), f'--from={READER}', f'--to={to}', '--fail-if-warnings', '--wrap=preserve',
               f'--lua-filter={HERE/"quarto.lua"}', *args]
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding='utf-8')
    if done.returncode: raise SiteError(f"{where}: pandoc stopped: {done.stderr.strip()}")
    return done.stdout
