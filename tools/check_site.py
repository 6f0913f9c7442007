"""Open every page of a built site in Chromium and list what a reader would stumble over.

Usage: python tools/check_site.py _docs [--shots DIR]

Works on any folder of HTML pages, so it checks Quarto's output as well as that of tools/build_site.py.
"""
import argparse
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
        '--disable-background-networking', '--disable-component-update']
BROWSERS = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
RAW = ':::', '#|', 'show_doc(', 'Traceback', '@fig-', '@tbl-', '@sec-', '{{<'
DESKTOP, PHONE = {'width': 1280, 'height': 900}, {'width': 390, 'height': 844}
MIN_TEXT = 40   # A page whose text is shorter is empty

# What only the browser can tell of a page. Code inside a sentence may name directives, so `text` leaves it out.
PROBE = """() => {
  const all = q => [...document.querySelectorAll(q)], body = document.body.cloneNode(true);
  body.querySelectorAll('script, style, noscript, :not(pre) > code').forEach(e => e.remove());
  const main = document.querySelector('main') || document.body;
  return {
    text: body.textContent, words: main.innerText.trim(),
    ids: all('[id], a[name]').flatMap(e => [e.id, e.getAttribute('name')]).filter(Boolean),
    links: all('a[href], area[href]').map(e => [e.getAttribute('href'), e.href]),
    images: all('img').map(e => [e.getAttribute('src') || '', e.complete && e.naturalWidth > 0, (e.alt || '').trim()]),
  };
}"""
# The elements that stick out sideways, past every box that scrolls by itself.
WIDE = """() => {
  const room = document.documentElement.clientWidth;
  if (Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) <= room) return null;
  const boxed = e => e && (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX) || boxed(e.parentElement));
  const sticksOut = e => e.getBoundingClientRect().right > room + 1 && !boxed(e.parentElement);
  const out = [...document.body.querySelectorAll('*')].filter(sticksOut);
  const last = out.pop() || document.body;
  return [last.tagName.toLowerCase(), last.className, last.textContent.trim().slice(0, 40)].filter(Boolean).join(' ');
}"""

# Drawings that are shown so small that their letters cannot be read.
SMALL = """() => [...document.querySelectorAll('img[src*=".svg"]')].map(e => [e.getAttribute('src'), e.getBoundingClientRect().width/e.naturalWidth])
  .filter(([src, part]) => part < .5)"""


class Quiet(SimpleHTTPRequestHandler):
    "Serves files without a line of log for each."
    def log_message(self, *args): pass


@contextmanager
def served(folder: Path):
    "The address of `folder`, served on this machine only."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=[.05], daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def chromium():
    "A headless browser."
    from playwright.sync_api import sync_playwright
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found: raise SystemExit(f"check_site: no browser found; install one of {', '.join(BROWSERS)}.")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=ARGS)
        try: yield browser
        finally: browser.close()


def listen(tab, home: str, errors: list[str]):
    "Note what goes wrong while `tab` loads; stop requests that would leave this machine."
    def route(r):
        if r.request.url.startswith((home, 'data:', 'blob:')): return r.continue_()
        errors.append(f'request to another host: {r.request.url}')
        return r.abort()
    tab.route('**/*', route)
    tab.on('pageerror', lambda e: errors.append(f'script error: {e}'))
    tab.on('console', lambda m: m.type == 'error' and errors.append(f'console error: {m.text}'))
    tab.on('response', lambda r: r.status >= 400 and errors.append(f'HTTP {r.status}: {r.url.removeprefix(home)}'))


def content_errors(seen: dict) -> list[str]:
    "What is wrong with the text and images of one page."
    errors = [f'raw markup on the page: {mark}' for mark in RAW if mark in seen['text']]
    if len(seen['words']) < MIN_TEXT: errors.append(f"empty page: {seen['words']!r}")
    for src, loaded, alt in seen['images']:
        if not loaded: errors.append(f'image not loaded: {src[:80]}')
        if not alt: errors.append(f'image without alt text: {src[:80]}')
    return errors


def visit(browser, home: str, name: str, shots: Path | None) -> tuple[dict, list[str]]:
    "Open one page wide and narrow; return what it holds and what is wrong."
    errors, tab = [], browser.new_page(viewport=DESKTOP, color_scheme='light')
    try:
        listen(tab, home, errors)
        tab.goto(f'{home}/{name}', wait_until='load')
        seen = tab.evaluate(PROBE)
        for theme in ('dark', 'light') if shots else ():
            tab.emulate_media(color_scheme=theme)
            snap(tab, shots, name, theme)
        tab.set_viewport_size(PHONE)
        if wide := tab.evaluate(WIDE): errors.append(f'scrolls sideways at {PHONE["width"]} px: {wide}')
        errors += [f'too small to read at {PHONE["width"]} px: {src[:80]} at {part:.2f} of its size' for src, part in tab.evaluate(SMALL)]
        if shots: snap(tab, shots, name, 'phone')
    finally: tab.close()
    return seen, errors + content_errors(seen)


def snap(tab, shots: Path, name: str, kind: str):
    "Photograph the whole page."
    tab.screenshot(path=shots/f'{name.removesuffix(".html").replace("/", "-")}-{kind}.png', full_page=True)


def link_error(folder: Path, home: str, written: str, full: str, ids: dict[str, list]) -> str | None:
    "What is wrong with one link, given the anchors `ids` of every page."
    if full.startswith('file:') or not written.strip(): return f'broken link: {written!r}'
    if not full.startswith(home + '/'): return None
    parts = urlsplit(full)
    target, anchor = unquote(parts.path).lstrip('/'), unquote(parts.fragment)
    if not target or target.endswith('/'): target += 'index.html'
    if not (folder/target).is_file(): return f'broken link: {written}'
    return f'no such anchor: {written}' if anchor and anchor not in ids.get(target, [anchor]) else None


def link_errors(folder: Path, home: str, seen: dict[str, dict]) -> list[str]:
    "Links and anchors of all pages that lead nowhere inside the site."
    ids = {name: page['ids'] for name, page in seen.items()}
    found = [(name, link_error(folder, home, *link, ids)) for name, page in seen.items() for link in page['links']]
    return [f'{name}: {error}' for name, error in found if error]


def check(folder: Path, browser=None, shots: Path | None = None) -> list[str]:
    "Everything that is wrong with the site in `folder`; an empty list if nothing is."
    folder = Path(folder)
    if browser is None:
        with chromium() as browser: return check(folder, browser, shots)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.html'))
    if 'index.html' not in names: return [f'empty site: no index.html in {folder}']
    if shots: shots.mkdir(parents=True, exist_ok=True)
    with served(folder) as home:
        found = {name: visit(browser, home, name, shots) for name in names}
        errors = [f'{name}: {e}' for name, (_, es) in found.items() for e in es]
        errors += link_errors(folder, home, {name: seen for name, (seen, _) in found.items()})
    return list(dict.fromkeys(errors))


def main(argv=None):
    "Check a site; print what is wrong and exit with 1."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help="the built site")
    parser.add_argument('--shots', type=Path, help="folder for screenshots: light, dark, phone")
    args = parser.parse_args(argv)
    if errors := check(args.folder, shots=args.shots): raise SystemExit('\n'.join(['check_site:', *errors]))
    print(f"{len(list(args.folder.rglob('*.html')))} pages opened in Chromium; nothing broken was found")


if __name__ == '__main__': main()
