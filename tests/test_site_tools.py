"The site's tools accept a good toy site, and reject it once for each thing that can go wrong with it."
import base64
import json
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT/'tools'
sys.path.insert(0, str(TOOLS))

yaml = pytest.importorskip('yaml', reason="the site tools need PyYAML (extra `dev`)")

import build_readme
import build_site
import check_site
import nbmd
from nbmd import SiteError


# A toy site ---------------------------------------------------------------------------------------------------------

def png(width=8, height=4):
    "A small picture, as a notebook stores it."
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = zlib.compress((b'\0' + b'\x80'*width)*height)
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    return base64.b64encode(data).decode()


def shown(data, **metadata): return {'output_type': 'display_data', 'data': data, 'metadata': metadata}
def printed(text): return {'output_type': 'stream', 'name': 'stdout', 'text': text}
def md(source): return {'cell_type': 'markdown', 'source': source, 'metadata': {}}
def code(source, *outputs): return {'cell_type': 'code', 'source': source, 'metadata': {}, 'outputs': list(outputs)}


def notebook(path, title, *cells):
    "Write a notebook as nbdev's documentation stage leaves it."
    url = re.sub(r'^\d+_', '', path.stem) + '.html'
    front = f'---\ntitle: {title}\ndescription: All about "{title}".\noutput-file: {url}\n---\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{'id': f'cell{i}', **c} for i, c in enumerate([{**md(front), 'cell_type': 'raw'}, *cells])]
    path.write_text(json.dumps({'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}))


FIGURE = code('#| fig-cap: "Loss by *epoch*."\n#| fig-alt: "A \\"falling\\" line."\nplot()',
              shown({'image/png': png(), 'text/plain': 'Figure'}, **{'image/png': {'width': 300, 'height': 150}}))
TABLE = ('<div><style scoped>td {color: red}</style><table class="dataframe">'
         '<tbody><tr><td>0.31</td></tr></tbody></table></div>')
SIGNATURE = ('---\n\n[source](https://example.org/x.py#L1){target="_blank" style="float:right"}\n\n### add\n\n'
             '```python\ndef add(\n    a:int, # First\n)->int: # Sum\n```\n\n'
             '*Add, see [`add`](https://toy.example/docs/guide/start.html#add).*')


def toy_proc(folder, *extra):
    "A processed two-page project in `folder`, with `extra` cells on its second page."
    notebook(folder/'index.ipynb', 'Toy',
             md('Read [the start](guide/01_start.ipynb#a-section), or just look at the picture.'), FIGURE,
             md('```python\nfoo[0](bar)\n```'), md('![A dot](images/dot.png)'))
    notebook(folder/'guide/01_start.ipynb', 'Start',
             md('## A section\n\nA formula: $x^2$, and `#| hide` in a sentence.'), FIGURE,
             code('#| output: asis\n#| echo: false\nshow_doc(add)', shown({'text/markdown': SIGNATURE})),
             code('#| include: false\nsecret_code()', printed('secret output')),
             code('df', shown({'text/html': TABLE})),
             code('#| echo: false\nquiet_code()', printed('\x1b[31mloud\x1b[0m output\n')),
             code('#| output: false\nloud_code()', printed('quiet output')),
             code('#| code-fold: true\n#| code-summary: Unfold\nfolded()'),
             md('::: {.callout-note}\n## Mind\nThe gap.\n:::\n\nBack to [the index](../index.ipynb).'), *extra)
    (folder/'images').mkdir()
    (folder/'images/dot.png').write_bytes(base64.b64decode(png()))
    sidebar = ['index.ipynb', {'section': 'Guide', 'contents': ['guide/01_start.ipynb']}]
    website = {'title': 'toy', 'repo-url': 'https://example.org/toy', 'site-url': 'https://toy.example/docs',
               'sidebar': {'contents': sidebar}}
    (folder/'_quarto.yml').write_text(yaml.safe_dump({'website': website, 'metadata-files': ['nbdev.yml']}))
    (folder/'nbdev.yml').write_text('website: {repo-branch: main}\n')
    return folder


@pytest.fixture(scope='module')
def pandoc():
    "Skip where pandoc is missing."
    pypandoc = pytest.importorskip('pypandoc', reason="building the site needs pypandoc_binary (extra `docs`)")
    try: return pypandoc.get_pandoc_path()
    except OSError as e: pytest.skip(f"building the site needs pandoc: {e}")


@pytest.fixture(scope='module')
def site(pandoc, tmp_path_factory):
    "The toy site, built."
    folder = tmp_path_factory.mktemp('toy')
    build_site.write(build_site.build(toy_proc(folder/'_proc')).files, folder/'_docs')
    return folder/'_docs'


@pytest.fixture(scope='module')
def browser():
    "One Chromium for the whole module; skip where it or playwright is missing."
    pytest.importorskip('playwright', reason="checking the site needs playwright (extra `docs`)")
    if not any(map(shutil.which, check_site.BROWSERS)): pytest.skip(f"no browser: {', '.join(check_site.BROWSERS)}")
    with check_site.chromium() as browser: yield browser


# What the builder writes --------------------------------------------------------------------------------------------

def test_options_and_outputs(site):
    "Hidden cells are absent; echo, output, code-fold, captions, sizes and alt texts are honoured."
    page = (site/'guide/start.html').read_text()
    for text in ('secret', 'quiet_code', 'quiet output', 'show_doc', 'td {color', '#| output', '\x1b'):
        assert text not in page
    for text in ('loud output', 'loud_code', '<summary>Unfold</summary>', 'class="callout callout-note"', '<math',
                 '<figcaption>Loss by <em>epoch</em>.</figcaption>', 'alt="A &quot;falling&quot; line."',
                 'width="300" height="150"'):
        assert text in page
    assert (site/'guide/start_files/cell2-1.png').read_bytes() == base64.b64decode(png())


def test_links_become_relative(site):
    "Links to notebooks, to the site's own address and from its root all become relative."
    page = (site/'guide/start.html').read_text()
    assert 'href="../index.html"' in page and 'href="start.html#add"' in page and 'href="../assets/site.css"' in page
    assert 'href="guide/start.html#a-section"' in (site/'index.html').read_text()
    assert 'href="https://example.org/toy/blob/main/guide/01_start.ipynb"' in page


def test_markdown_twin(site):
    "Each page has a Markdown twin: no divs, tables as tables, callouts as GitHub writes them."
    twin = (site/'guide/start.html.md').read_text()
    assert twin.startswith('# Start\n\n> All about')
    assert not any(mark in twin for mark in ('<div', ':::', '<table'))
    assert '> [!NOTE]\n> **Mind**' in twin and '(../index.html)' in twin


def test_nothing_from_another_host(site):
    "No script, style, font or image is fetched from elsewhere."
    for path in site.rglob('*.*'):
        if path.suffix not in ('.html', '.css', '.js'): continue
        assert not re.search(r'(src="|url\(|@import ")https?:', path.read_text())


def unlisted(proc): notebook(proc/'lost.ipynb', 'Lost', md('Nobody links here.'))
def unwritten(proc): (proc/'guide/01_start.ipynb').unlink()
def foreign(proc): (proc/'page.qmd').write_text('# A page')
def same_address(proc): notebook(proc/'guide/02_start.ipynb', 'Start again', md('Text'))
def no_metadata_file(proc): (proc/'nbdev.yml').unlink()
def no_notebooks(proc): [p.unlink() for p in proc.rglob('*.ipynb')]


@pytest.mark.parametrize('spoil, message', [
    (unlisted, 'page missing from the sidebar of _quarto.yml: lost.ipynb'),
    (unwritten, 'in the sidebar of _quarto.yml but not a page: guide/01_start.ipynb'),
    (foreign, 'Only notebooks are rendered'), (same_address, 'same address'), (no_metadata_file, 'nbdev.yml'),
    (no_notebooks, 'holds no notebook')])
def test_builder_refuses_project(tmp_path, spoil, message):
    "A project whose sidebar and pages disagree is not built."
    spoil(proc := toy_proc(tmp_path))
    with pytest.raises(SiteError, match=re.escape(message)): build_site.build(proc)


@pytest.mark.parametrize('cell, message', [
    (md('See [there](03_nowhere.ipynb).'), 'guide/01_start.ipynb: link to no page: 03_nowhere.ipynb'),
    (md('![A picture](gone.png)'), 'link to no page: gone.png'),
    (md('See [it](https://toy.example/docs/gone.html#x).'), 'link to no page'),
    (md(r'$\frac{1$'), 'guide/01_start.ipynb: pandoc stopped'),
    (md(r'$\unknowncommand{x}$'), 'pandoc stopped'),
    (md('\\begin{align}x\\end{align}'), 'TeX outside'),
    (md('::: {.callout-note}\nNever closed.'), 'pandoc stopped'),
    (md('## One {#same}\n\n## Two {#same}'), 'pandoc stopped'),
    (code('#| fig-cap: two: colons\nplot()'), 'not YAML'),
    (code('#| hide\nsecret()'), 'must read `#| key: value`')])
def test_builder_refuses_cell(pandoc, tmp_path, cell, message):
    "A cell that would come out wrong stops the build and is named."
    with pytest.raises(SiteError, match=re.escape(message)): build_site.build(toy_proc(tmp_path, cell))


def test_builder_keeps_other_folders(tmp_path):
    "A folder that holds something else is not replaced."
    (tmp_path/'thesis.txt').write_text('precious')
    with pytest.raises(SiteError, match='holds no site'): build_site.write({}, tmp_path)
    assert (tmp_path/'thesis.txt').exists()


def test_builder_exit_status(tmp_path):
    "On the command line a mistake gives status 1 and its name, without a traceback."
    proc = toy_proc(tmp_path/'_proc')
    unlisted(proc)
    command = [sys.executable, TOOLS/'build_site.py', proc, tmp_path/'_docs']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'lost.ipynb' in done.stderr and 'Traceback' not in done.stderr


# What the checker finds ---------------------------------------------------------------------------------------------

def test_good_site_passes(site, browser): assert check_site.check(site, browser) == []


def test_options_of_a_reader_survive(site, browser):
    "The theme button is remembered on the next page, and the phone's menu opens and closes."
    with check_site.served(site) as home:
        tab = browser.new_page(viewport=check_site.PHONE, color_scheme='light')
        tab.goto(f'{home}/index.html')
        ground = 'getComputedStyle(document.body).backgroundColor'
        light = tab.evaluate(ground)
        tab.click('#theme')
        tab.goto(f'{home}/guide/start.html')
        assert tab.evaluate(ground) != light
        assert not tab.is_visible('#side')
        tab.click('#menu')
        assert tab.is_visible('#side')
        tab.click('#side a[href="../index.html"]')
        assert tab.url.endswith('/index.html')
        tab.close()


def body(text): return lambda page: page.replace('</article>', f'{text}</article>')
def gutted(page): return re.sub(r'<main.*</main>', '<main></main>', page, flags=re.DOTALL)


DEFECTS = {
    'broken link': (body('<a href="gone.html">x</a>'), 'broken link: gone.html'),
    'broken fragment': (body('<a href="../index.html#gone">x</a>'), 'no such anchor: ../index.html#gone'),
    'broken own fragment': (body('<a href="#gone">x</a>'), 'no such anchor: #gone'),
    'empty link': (body('<a href="">x</a>'), "broken link: ''"),
    'leaked div': (body('<p>::: {.callout-note}</p>'), 'raw markup on the page: :::'),
    'leaked option': (body('<pre>#| echo: false</pre>'), 'raw markup on the page: #|'),
    'raw reference': (body('<p>see @fig-loss</p>'), 'raw markup on the page: @fig-'),
    'shortcode': (body('<p>{{< video x >}}</p>'), 'raw markup on the page: {{<'),
    'show_doc': (body('<pre>show_doc(add)</pre>'), 'raw markup on the page: show_doc('),
    'traceback': (body('<pre>Traceback (most recent call last)</pre>'), 'raw markup on the page: Traceback'),
    'folded traceback': (body('<details><pre>Traceback</pre></details>'), 'raw markup on the page: Traceback'),
    'empty page': (gutted, 'empty page'),
    'no alt text': (lambda page: re.sub(r' alt="[^"]*"', '', page), 'image without alt text'),
    'empty alt text': (lambda page: re.sub(r' alt="[^"]*"', ' alt=""', page), 'image without alt text'),
    'another host': (body('<img alt="x" src="http://192.0.2.1/x.png">'), 'request to another host: http://192.0.2.1'),
    'script error': (body('<script>nothing.here()</script>'), 'script error'),
    'console error': (body('<script>console.error("oh")</script>'), 'console error: oh'),
    'missing script': (body('<script src="gone.js"></script>'), 'HTTP 404: /guide/gone.js'),
    'too wide': (body('<div style="width: 700px">wide</div>'), 'scrolls sideways at 390 px: div'),
    'a drawing too small': (body('<img alt="x" width="350" src="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 width=%222000%22 height=%2210%22/%3E#x.svg">'),
                            'too small to read at 390 px: data:image/svg+xml'),
    'a long word': (body('<p style="overflow-wrap: normal">' + 'long'*40 + '</p>'), 'scrolls sideways at 390 px'),
}


@pytest.mark.parametrize('defect', DEFECTS)
def test_checker_finds(site, browser, tmp_path, defect):
    "Each defect, put into one page of the good site, is reported for that page."
    spoil, message = DEFECTS[defect]
    page = shutil.copytree(site, tmp_path/'site')/'guide/start.html'
    page.write_text(spoil(page.read_text()))
    errors = check_site.check(tmp_path/'site', browser)
    assert any(e.startswith('guide/start.html: ') and message in e for e in errors), errors


def test_checker_finds_deleted_image(site, browser, tmp_path):
    "A missing image is reported, by its status and by its page."
    folder = shutil.copytree(site, tmp_path/'site')
    (folder/'guide/start_files/cell2-1.png').unlink()
    assert 'guide/start.html: image not loaded: start_files/cell2-1.png' in check_site.check(folder, browser)


def test_checker_finds_empty_site(browser, tmp_path):
    "A folder without a front page is no site."
    assert check_site.check(tmp_path, browser) == [f'empty site: no index.html in {tmp_path}']


def test_screenshots(site, browser, tmp_path):
    "Each page is photographed light, dark and narrow."
    assert check_site.check(site, browser, tmp_path/'shots') == []
    pages, kinds = ('index', 'guide-start'), ('light', 'dark', 'phone')
    assert {p.name for p in (tmp_path/'shots').iterdir()} == {f'{p}-{k}.png' for p in pages for k in kinds}


# README -------------------------------------------------------------------------------------------------------------

@pytest.fixture
def project(tmp_path):
    "A toy repository whose notebooks are processed."
    toy_proc(tmp_path/'_proc')
    (tmp_path/'pyproject.toml').write_text(
        '[project.urls]\nDocumentation = "https://toy.example/docs/"\n[tool.nbdev]\nnbs_path = "nbs"\n')
    return tmp_path


def test_readme(pandoc, project):
    "Links lead to the documentation, pictures lie in nbs/images, and a second run changes nothing."
    (project/'nbs/images').mkdir(parents=True)
    (project/'nbs/images/readme_7.png').write_text('stale')
    build_readme.main(['--root', str(project)])
    text = (project/'README.md').read_text()
    assert text.startswith('# Toy\n\n> All about') and '(https://toy.example/docs/guide/start.html#a-section)' in text
    assert 'src="nbs/images/readme_1.png"' in text and '(nbs/images/dot.png)' in text and 'foo[0](bar)' in text
    assert [p.name for p in (project/'nbs/images').iterdir()] == ['readme_1.png']
    build_readme.main(['--root', str(project), '--check'])
    assert build_readme.stale(project, build_readme.build(project, project/'_proc')) == []


@pytest.mark.parametrize('name', ['README.md', 'nbs/images/readme_1.png'])
def test_readme_check(pandoc, project, name):
    "`--check` names what differs and the command that mends it."
    build_readme.main(['--root', str(project)])
    (project/name).write_text('edited by hand')
    with pytest.raises(SystemExit, match=rf'(?s){name}.*run: python tools/proc_nbs.py'):
        build_readme.main(['--root', str(project), '--check'])
    assert (project/name).read_text() == 'edited by hand'


def test_readme_needs_processed_index(project):
    "A processed notebook older than its source is not turned into a README."
    (project/'nbs').mkdir()
    notebook(project/'nbs/index.ipynb', 'Newer', md('Text'))
    (project/'_proc/index.ipynb').unlink()
    with pytest.raises(SystemExit, match='missing or older'): build_readme.main(['--root', str(project)])


# The project's own files --------------------------------------------------------------------------------------------

def test_addresses_come_from_pyproject():
    "nbs/nbdev.yml, which nbdev generates, holds the addresses of pyproject.toml."
    urls = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['urls']
    website = yaml.safe_load((ROOT/'nbs/nbdev.yml').read_text())['website']
    mend = "run: python -c 'from nbdev.quarto import refresh_quarto_yml as f; f()'"
    assert website['repo-url'] == urls['Repository'], mend
    assert website['site-url'] == urls['Documentation'].rstrip('/'), mend


def test_quarto_yml_is_one_file():
    "nbdev reads the very file that lies at the top."
    assert (ROOT/'nbs/_quarto.yml').resolve() == ROOT/'_quarto.yml', "run: ln -sf ../_quarto.yml nbs/_quarto.yml"
    assert nbmd.load_config(ROOT/'nbs')['website']['sidebar']['contents'][0] == 'index.ipynb'
