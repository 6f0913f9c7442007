"Every public name says what it is, every page keeps the house's order. Each rule is shown a text that breaks it."
import ast
import inspect
import io
import re
import textwrap
import tokenize
from importlib import import_module
from statistics import median

import pytest
from conftest import ROOT
from fastcore.nbio import mk_cell, read_nb
from nbdev.doclinks import nbglob

PATHS = sorted(p for p in (ROOT/'lotus_nb').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
NAMES = ['lotus_nb.' + '.'.join(p.relative_to(ROOT/'lotus_nb').with_suffix('').parts) for p in PATHS]
DEFINING = [n for n in NAMES if n != 'lotus_nb.all']
PAGES = sorted(nbglob(ROOT/'nbs', as_path=True))


def page_name(p): return p.relative_to(ROOT/'nbs').as_posix()


def source(path): return path.read_text(encoding='utf-8')


# Names and parameters.

PLAIN = {'self', 'model', 'task', 'seed', 'device', 'lr', 'wd', 'momentum', 'epochs', 'n', 'dl', 'dls', 'title', 'caption', 'alt'}   # say themselves what they are
SAID_ELSEWHERE = {'Learner.unlearn': {'augment', 'resident', 'twins', 'workers'}}      # "as in `task_from_dls`, and so are the next four"
BY_PROTOCOL = {'forward', 'forward_features'}                                  # names and meaning are torch's and timm's


def own(module):
    "Public functions and classes that a module defines, and methods that it adds to classes of others."
    found = (getattr(module, n) for n in getattr(module, '__all__', ()))
    return [*(o for o in found if (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__ == module.__name__), *patched(module)]


def patched(module):
    for f in ast.parse(inspect.getsource(module)).body:
        if isinstance(f, ast.FunctionDef) and 'patch' in map(ast.unparse, f.decorator_list):
            yield getattr(getattr(module, ast.unparse(f.args.args[0].annotation)), f.name)


def members(cls):
    "Public methods and properties that a class defines itself, and its `__init__` where it is written out."
    for k, v in vars(cls).items():
        f = v.fget if isinstance(v, property) else getattr(v, '__func__', v)
        written = inspect.isfunction(f) and f.__module__ == cls.__module__ and f.__qualname__ == f'{cls.__name__}.{k}'
        if written and (not k.startswith('_') or k == '__init__' and '__dataclass_fields__' not in vars(cls)): yield f


def metric_functions():
    "Registered metrics: the title and unit in the decorator say what they are, the protocol of `metric` what they take."
    core = import_module('lotus_nb.metrics.core')
    return {core.get_metric(n).fn for n in core.list_metrics()}


def undocumented(objects, titled=()):
    "Names without a docstring of one line. `titled` ones may do without."
    for o in objects:
        for f in [o, *(members(o) if inspect.isclass(o) else ())]:
            if f in titled or f.__name__ in {'__init__', *BY_PROTOCOL}: continue
            doc = inspect.cleandoc(f.__doc__ or '')
            if not doc or '\n' in doc: yield f'{f.__qualname__} needs a docstring of one line'


def parameters(f):
    "Parameters of a function with their nodes, and the lines of its source that end in a comment."
    text = textwrap.dedent(inspect.getsource(f))
    node = next(n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
    a = node.args
    every = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return node, {x.arg: x for x in every}, {t.start[0] for t in tokens if t.type == tokenize.COMMENT}


def unexplained(objects):
    "Parameters without a comment (or a command's `help=`), in signatures of more than one line; a shorter one is explained by its docstring."
    for o in objects:
        for f in members(o) if inspect.isclass(o) else [o]:
            node, every, comments = parameters(f)
            if node.body[0].lineno - node.lineno < 2: continue
            fine = PLAIN | SAID_ELSEWHERE.get(f.__qualname__, set())
            for k, x in every.items():
                helped = x.annotation and 'help=' in ast.unparse(x.annotation)
                if not (k in fine or x.lineno in comments or helped): yield f'{f.__qualname__}({k}) needs a comment'


@pytest.mark.parametrize('name', DEFINING)
def test_public_names_are_documented(name):
    titled = metric_functions()
    # docstrings of commands are the help that a user reads, and may be longer
    objects = [o for o in own(import_module(name)) if not (name == 'lotus_nb.cli' and o.__doc__)]
    assert list(undocumented(objects, titled)) == []


@pytest.mark.parametrize('name', DEFINING)
def test_parameters_are_explained(name):
    titled = metric_functions()
    assert list(unexplained(o for o in own(import_module(name)) if o not in titled)) == []


class _Bad:
    "A class."
    def __init__(self,
        size: int,      # Of it
        colour: str,
    ): self.size = size
    def bare(self): return 1
    @property
    def long(self):
        """One line.

        And more."""
        return 1


def _bad(model,
    alpha: float = 1.,
    beta: float = 2.,   # Second strength
    **rest,
): return alpha


def test_missing_words_are_seen():
    assert list(undocumented([_Bad, _bad])) == [f'{n} needs a docstring of one line' for n in ('_Bad.bare', '_Bad.long', '_bad')]
    assert list(unexplained([_Bad, _bad])) == ['_Bad.__init__(colour) needs a comment', '_bad(alpha) needs a comment', '_bad(rest) needs a comment']
    assert list(undocumented([_bad], titled={_bad})) == []


def test_metrics_have_titles_and_units():
    core = import_module('lotus_nb.metrics.core')
    for name in core.list_metrics():
        m = core.get_metric(name)
        assert m.title.strip() and m.unit.strip(), name


# Code.

def functions(tree): return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def lengths(sources): return {f'{n}.{f.name}:{f.lineno}': f.end_lineno - f.lineno + 1 for n, s in sources.items() for f in functions(ast.parse(s))}


def too_long(n):
    "Functions above 45 lines, and shares of the package that are out of proportion."
    ordered = sorted(n.values())
    return [*(f'{k}: {v} lines' for k, v in n.items() if v > 45), *(['median above 8'] if median(ordered) > 8 else []),
            *(['nine tenths are not below 26'] if ordered[int(.9*len(ordered))] > 25 else [])]


def test_functions_are_short(): assert too_long(lengths({n: source(p) for n, p in zip(NAMES, PATHS)})) == []


def test_long_functions_are_seen():
    def made(lines, times=1): return {f'm{i}': 'def f():\n' + '    x = 1\n'*(lines - 1) for i in range(times)}
    assert too_long(lengths({**made(3, 20), 'big': made(46)['m0']})) == ['big.f:1: 46 lines']
    assert too_long(lengths(made(9, 20))) == ['median above 8']
    assert too_long(lengths({**made(3, 20), **{f'b{i}': made(26)['m0'] for i in range(5)}})) == ['nine tenths are not below 26']


def wide_lines(text):
    "Numbers of lines over 120 columns, below what nbdev writes itself."
    lines = text.split('\n')
    head = next((i for i, l in enumerate(lines) if l.startswith('# %% ../')), -1)
    return [i + 1 for i, l in enumerate(lines) if i > head and len(l) > 120 and not l.startswith('# %%')]


def loose_ends(text, printers=()):
    "Work left to do, and printing outside of the functions that are for it."
    words = [w for w in ('NotImpl' + 'ementedError', 'TO' + 'DO', 'FIX' + 'ME') if w in text]
    tree = ast.parse(text)
    allowed = {id(n) for f in functions(tree) if f.name in printers for n in ast.walk(f)}
    return words + [f'prints in line {n.lineno}' for n in ast.walk(tree)
                    if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'print' and id(n) not in allowed]


PRINTERS = {'lotus_nb.core': {'show_progress'}}      # besides the command line


@pytest.mark.parametrize('path', PATHS, ids=NAMES)
def test_lines_fit(path): assert wide_lines(source(path)) == [], '120 columns'


@pytest.mark.parametrize('name, path', [*zip(NAMES, PATHS)], ids=NAMES)
def test_nothing_is_left_open(name, path):
    found = loose_ends(source(path), PRINTERS.get(name, ()))
    assert [f for f in found if not (name == 'lotus_nb.cli' and f.startswith('prints'))] == []


def test_wide_lines_and_loose_ends_are_seen():
    assert wide_lines('x\n# %% ../nbs/a.ipynb\n' + 'y'*121) == [3] and wide_lines('x'*121 + '\n# %% ../nbs/a.ipynb\n' + 'y'*120) == []
    assert loose_ends('def f():\n    print(1)\n# TO' + 'DO') == ['TO' + 'DO', 'prints in line 2']
    assert loose_ends('def f():\n    def g(): print(1)', {'f'}) == []


# Pages.

def is_export(c): return c.cell_type == 'code' and re.search(r'^#\| *exporti?\b', c.source, re.M)


def directive(c, name): return re.search(rf'^#\| *{name}\b', c.source, re.M)


def figure(c):
    "Whether a cell shows a figure: it draws one and leaves it open, or holds an image among its outputs."
    shown = any('image/png' in o.get('data', {}) for o in getattr(c, 'outputs', None) or [])
    return shown or bool(re.search(r'\bplt\.subplots\(|\bplot_\w+\(', c.source)) and 'plt.close' not in c.source


def disorder(cells):
    "What a page does against the house's order."
    exported, first_words = any(map(is_export, cells)), next((c for c in cells if c.cell_type == 'markdown'), None)
    if exported and not directive(cells[0], 'default_exp'): yield 'the first cell is not `#| default_exp`'
    if first_words is None or cells.index(first_words) != exported or not re.match(r'# \S.*\n> \S.+', first_words.source):
        yield 'a page begins with a title and one line that says what it is'
    if exported and not (directive(cells[-1], 'hide') and 'nbdev.nbdev_export()' in cells[-1].source): yield 'the last cell is not the hidden export'
    for c in cells:
        bare = re.sub(r'^```.*?^```', '', c.source, flags=re.M | re.S)
        if c.cell_type == 'markdown' and re.search(r'^##+ ', bare, re.M) and '\n' in c.source.strip(): yield f'a heading stands alone: {c.source[:60]!r}'
        if c.cell_type != 'code' or is_export(c) or directive(c, 'hide'): continue
        if figure(c) and not all(re.search(rf'^#\| *{d}: *\S', c.source, re.M) for d in ('fig-cap', 'fig-alt')):
            yield f'a figure needs a caption and words: {c.source[:80]!r}'


@pytest.mark.parametrize('page', PAGES, ids=map(page_name, PAGES))
def test_pages_keep_the_order(page): assert list(disorder(read_nb(page).cells)) == []


METHOD_PAGES = [p for p in PAGES if p.parent.name == 'methods' and not p.name.startswith('00')]
SECTIONS = ['Idea', 'Pieces', 'The method', 'Contract', 'What it does to a model', 'Fidelity']


def sections(cells): return [c.source[3:].strip() for c in cells if c.cell_type == 'markdown' and c.source.startswith('## ')]


@pytest.mark.parametrize('page', METHOD_PAGES, ids=map(page_name, METHOD_PAGES))
def test_method_pages_have_six_sections(page): assert sections(read_nb(page).cells) == SECTIONS


GOOD = [('code', '#| default_exp x'), ('markdown', '# X\n> What it is.'), ('code', '#| export\ndef f(): pass'), ('markdown', '## Use'),
        ('markdown', 'Words.\n\n```\n## no heading\n```'), ('code', "#| fig-cap: A.\n#| fig-alt: B.\nplot_bars(df)"),
        ('code', 'plot_bars(df); plt.close()'), ('code', '#| hide\nimport nbdev; nbdev.nbdev_export()')]


@pytest.mark.parametrize('at, cell, said', [
    (0, ('code', 'x = 1'), 'default_exp'), (1, ('markdown', '# X'), 'begins with a title'), (1, ('markdown', '# X\n\nWords.'), 'begins with a title'),
    (1, ('code', 'x = 1'), 'begins with a title'), (7, ('code', 'import nbdev; nbdev.nbdev_export()'), 'hidden export'), (7, ('code', 'x = 1'), 'hidden export'),
    (3, ('markdown', '## Use\nWords.'), 'heading stands alone'), (4, ('markdown', 'Words.\n\n### More'), 'heading stands alone'),
    (5, ('code', 'plot_bars(df)'), 'caption'), (5, ('code', '#| fig-cap: A.\nfig, ax = plt.subplots()'), 'caption'),
    (5, ('code', '#| fig-cap:\n#| fig-alt: B.\nplot_bars(df)'), 'caption')])
def test_disorder_is_seen(at, cell, said):
    make = lambda cells: [mk_cell(text, kind) for kind, text in cells]
    assert list(disorder(make(GOOD))) == []
    assert any(said in d for d in disorder(make([*GOOD[:at], cell, *GOOD[at + 1:]])))


def test_a_missing_section_is_seen(): assert sections([mk_cell(f'## {s}', 'markdown') for s in SECTIONS[:-1]]) != SECTIONS


# Places.

PLACE = re.compile(r'/(?:home|root|Users)/\w+|/tmp/tmp\w+')
FOLDERS = ('nbs', 'lotus_nb', 'tools', 'tests', '.github', '.ci')


def written():
    "Files of the project, whether or not there is a git."
    for p in [*ROOT.glob('*'), *(p for d in FOLDERS for p in (ROOT/d).rglob('*'))]:
        if p.suffix in ('.py', '.ipynb', '.md', '.toml', '.ini', '.yml', '') and p.is_file() and '__pycache__' not in p.parts: yield p


def test_nothing_names_the_place_it_was_made_in():
    "No path of somebody's machine."
    files = [p for p in written() if p.name != 'test_docs.py']
    assert len(files) > 60
    for p in files:
        found = PLACE.search(p.read_text(encoding='utf-8', errors='ignore'))
        assert not found, (p, found)
    assert PLACE.search('File "/home/somebody/x.py"') and PLACE.search('/tmp/tmpab12/x') and not PLACE.search('https://example.org/roots')
