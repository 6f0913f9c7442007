"""Turn the processed notebooks in `_proc/` into a site with pandoc alone, to read offline and check before publishing.

Usage: python tools/build_site.py _proc _docs

The published site is rendered by Quarto. This renderer reads the same Markdown and the same `_quarto.yml`; it does not
know tabsets, cross-references, shortcodes or search, and stops at anything it would get wrong without saying so.
"""
import argparse
import html
import os
import posixpath
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from nbmd import HERE, Page, SiteError, load_config, load_page, page_markdown, pandoc

COPIED = {'.css', '.gif', '.ico', '.jpeg', '.jpg', '.pdf', '.png', '.svg', '.txt', '.webp'}
HTML_LINK = r'(\b(?:href|src)=")([^"]*)(")'
MD_LINK = r'(\]\()([^)\s]+\.ipynb(?:#[^)\s]*)?)(\))'


@dataclass
class Site:
    "Everything the pages share."
    config: dict
    pages: dict[str, Page]
    files: dict[str, bytes] = field(default_factory=dict)    # What is written, by address below the root
    errors: list[str] = field(default_factory=list)

    @property
    def website(self): return self.config.get('website') or {}


def load_pages(proc: Path) -> dict[str, Page]:
    "Every notebook below `proc` except those in folders or files starting with `_` or `.`."
    found = [p.relative_to(proc) for p in sorted(proc.rglob('*')) if p.suffix in ('.ipynb', '.qmd', '.md')]
    shown = [p.as_posix() for p in found if not any(part[0] in '_.' for part in p.parts)]
    if other := [p for p in shown if not p.endswith('.ipynb')]:
        raise SiteError(f"Only notebooks are rendered; move these out of the way: {', '.join(other)}")
    pages = {p: load_page(proc, p) for p in shown}
    if not pages: raise SiteError(f"{proc} holds no notebook; run tools/proc_nbs.py first.")
    if len({p.url for p in pages.values()}) < len(pages): raise SiteError("Two notebooks would get the same address.")
    return pages


# Sidebar ------------------------------------------------------------------------------------------------------------

def entries(contents) -> list[str]:
    "The notebooks of a sidebar, in reading order."
    flat = []
    for item in contents:
        if isinstance(item, str): flat.append(item)
        else: flat += [h for h in [item.get('href')] if h] + entries(item.get('contents', []))
    return flat


def check_sidebar(pages: dict, listed: list[str]):
    "Stop if a page is in no sidebar, or a sidebar entry is no page."
    lost, void = sorted(pages.keys() - set(listed)), [e for e in listed if e not in pages]
    twice = sorted({e for e in listed if listed.count(e) > 1})
    problems = [f"in the sidebar of _quarto.yml but not a page: {e}" for e in void]
    problems += [f"page missing from the sidebar of _quarto.yml: {p}" for p in lost]
    problems += [f"twice in the sidebar of _quarto.yml: {e}" for e in twice]
    if problems: raise SiteError('\n'.join(problems))


def nav_html(contents, pages) -> str:
    "The sidebar's list, with addresses from the site's root."
    def item(entry):
        if isinstance(entry, str): entry = {'href': entry}
        page = pages.get(entry.get('href'))
        label = html.escape(str(entry.get('section') or entry.get('text') or page.title))
        if page: label = f'<a href="/{page.url}">{label}</a>'
        if 'contents' not in entry: return f'<li>{label}</li>'
        return f'<li><details open><summary>{label}</summary>{nav_html(entry["contents"], pages)}</details></li>'
    return f'<ul>{"".join(map(item, contents))}</ul>'


# Links --------------------------------------------------------------------------------------------------------------

def local_target(link: str, page: Page, site: Site) -> str | None:
    "The address below the site's root that `link` on `page` leads to, or None if it leaves the site or the page stays."
    home = site.website.get('site-url', '').rstrip('/')
    if home and (link + '/').startswith(home + '/'): link = '/' + link.removeprefix(home).lstrip('/')
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path: return None
    path = posixpath.normpath(posixpath.join('/', posixpath.dirname(page.url), unquote(parts.path))).lstrip('/')
    if path in site.pages: return site.pages[path].url
    return path if path and not parts.path.endswith('/') else posixpath.join(path, 'index.html')


def relink(text: str, page: Page, site: Site, pattern: str = HTML_LINK) -> str:
    "Make every link on a page relative, and note those that lead nowhere."
    def fix(found):
        before, link, after = found[1], html.unescape(found[2]), found[3]
        target = local_target(link, page, site)
        if target is None: return found[0]
        if target not in site.files: site.errors.append(f"{page.path}: link to no page: {link}")
        fragment = '#' + urlsplit(link).fragment if urlsplit(link).fragment else ''
        return before + html.escape(posixpath.relpath(target, posixpath.dirname(page.url) or '.') + fragment) + after
    return re.sub(pattern, fix, text)


# Pages --------------------------------------------------------------------------------------------------------------

def neighbours(page: Page, order: list[Page]) -> str:
    "Links to the page before and the page after."
    i = order.index(page)
    link = lambda p, rel, word: f'<a rel="{rel}" href="/{p.url}"><span>{word}</span> {html.escape(p.title)}</a>'
    before = link(order[i-1], 'prev', 'Previous') if i else '<span></span>'
    return before + (link(order[i+1], 'next', 'Next') if i + 1 < len(order) else '')


def source_links(page: Page, site: Site) -> str:
    "Links to the notebook, the issue tracker and the Markdown twin."
    repo, web = site.website.get('repo-url', '').rstrip('/'), site.website
    source = posixpath.join('blob', web.get('repo-branch', 'main'), web.get('repo-subdir', ''), page.path)
    links = [(f'{repo}/{source}', 'Notebook'), (f'{repo}/issues/new', 'Report an issue')] if repo else []
    links.append((f'/{page.url}.md', 'Markdown'))
    return ' '.join(f'<a href="{html.escape(url)}">{text}</a>' for url, text in links)


def header(page: Page) -> str:
    "The page's title and description as the metadata block pandoc reads."
    keep = {'title': page.title, **{k: page.meta[k] for k in ('description', 'body-classes') if page.meta.get(k)}}
    return f'---\n{yaml.safe_dump(keep, allow_unicode=True)}---\n\n'


def render(page: Page, order: list[Page], site: Site):
    "Add a page, its images and its Markdown twin to the site's files."
    folder = page.url.removesuffix('.html') + '_files'
    def save(name, data):
        site.files[f'{folder}/{name}'] = data
        return f'{posixpath.basename(folder)}/{name}'
    source = header(page) + page_markdown(page, save, site.config)
    nav = nav_html(site.website['sidebar']['contents'], site.pages)
    nav = nav.replace(f'href="/{page.url}"', f'href="/{page.url}" aria-current="page"')
    shared = {'nav': nav, 'site': html.escape(site.website.get('title', 'Documentation')),
              'repo': html.escape(site.website.get('repo-url', '')), 'pager': neighbours(page, order),
              'links': source_links(page, site)}
    depth = site.config.get('format', {}).get('html', {}).get('toc-depth', 3)
    out = pandoc(source, 'html5', page.path, '--mathml', '--toc', f'--toc-depth={depth}',
                 f'--template={HERE/"page.html"}', *(f'--variable={k}:{v}' for k, v in shared.items()))
    site.files[page.url] = re.sub(r'<a href="#cb\d+-\d+"[^>]*></a>', '', out).encode()
    twin = pandoc(source, 'gfm', page.path, f'--template={HERE/"page.md"}')
    site.files[f'{page.url}.md'] = twin.encode()


def static_files(proc: Path) -> dict[str, bytes]:
    "Style sheets and images that lie beside the notebooks, and this renderer's own."
    found = [p.relative_to(proc) for p in proc.rglob('*') if p.suffix in COPIED and p.is_file()]
    files = {p.as_posix(): (proc/p).read_bytes() for p in found if not any(part[0] in '_.' for part in p.parts)}
    return {'styles.css': b'', **files, **{f'assets/{n}': (HERE/n).read_bytes() for n in ('site.css', 'site.js')}}


def build(proc: Path) -> Site:
    "Render every page; raise `SiteError` with all that is wrong."
    site = Site(load_config(proc), load_pages(proc), static_files(proc))
    listed = entries((site.website.get('sidebar') or {}).get('contents') or [])
    check_sidebar(site.pages, listed)
    order = [site.pages[e] for e in listed]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda page: render(page, order, site), order))
    for page in order:
        for name, pattern in ((page.url, HTML_LINK), (f'{page.url}.md', MD_LINK)):
            site.files[name] = relink(site.files[name].decode(), page, site, pattern).encode()
    if 'index.html' not in site.files: site.errors.append("there is no index.ipynb, so the site has no front page")
    if site.errors: raise SiteError('\n'.join(dict.fromkeys(site.errors)))
    return site


def write(files: dict[str, bytes], out: Path):
    "Replace the site in `out`."
    if out.exists() and any(out.iterdir()) and not (out/'index.html').exists():
        raise SiteError(f"{out} is not empty and holds no site; name another folder.")
    shutil.rmtree(out, ignore_errors=True)
    for name, data in files.items():
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        (out/name).write_bytes(data)


def main(argv=None):
    "Build the site, or say what stops it and exit with 1."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('proc', type=Path, help="folder of processed notebooks, from tools/proc_nbs.py")
    parser.add_argument('out', type=Path, help="folder for the site; replaced")
    args = parser.parse_args(argv)
    try:
        site = build(args.proc)
        write(site.files, args.out)
    except SiteError as e: raise SystemExit(f"build_site: {e}") from None
    print(f"{len(site.pages)} pages in {args.out}/ (rendered by pandoc; the published site is rendered by Quarto)")


if __name__ == '__main__': main()
