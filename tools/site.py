#!/usr/bin/env python
"""Build the book as a site with Sphinx, from the notebooks as they were saved, and check it.

No cell is run and nothing is fetched. Then: every notebook is in the table of contents, every module in the reference,
and every link and picture inside the site leads somewhere. With a browser (see browser.py), a search must find a
chapter, and no page may be wider than a telephone; without one this says SKIPPED. `--shots FOLDER` keeps pictures of
some pages.
Exit status: 0, or 1 with a sentence for each thing that does not hold.
"""

import argparse
import shutil
import subprocess
import sys
import threading
import time
from configparser import ConfigParser
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from browser import Browser, find_browser

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']
nbs, package, docs = (root / settings[key] for key in ('nbs_path', 'lib_path', 'doc_path'))
site = docs / 'html'

SEARCH = ('Otsu', '22_masks.mixing')  # a word, and a page that a search for it must find
WIDTHS = (1280, 390)
LOOKED_AT = ('index', '09_one_page', '22_masks.mixing', '10_theory.snr', 'glossary', 'api/index', 'api/masks')


def build():
    "Run Sphinx, where a warning is an error; whether it succeeded"
    shutil.rmtree(docs, ignore_errors=True)
    options = ['-b', 'html', '-q', '-E', '-n', '-W', '--keep-going', '-j', '2', '-d', docs / 'doctrees']
    return subprocess.run([sys.executable, '-m', 'sphinx', *options, nbs, site]).returncode == 0


# ---- what the pages say about each other


class Page(HTMLParser):
    "The anchors of a page, and what it refers to"

    def __init__(self, path):
        super().__init__()
        self.path, self.anchors, self.links = path, set(), []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.update(values[key] for key in ('id', 'name') if values.get(key))
        self.links += [values[key] for key in ('href', 'src') if values.get(key)]


def broken_links(pages):
    "A sentence for each link inside the site that leads nowhere"
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if to.is_dir():
                to = to / 'index.html'
            anchor = unquote(parts.fragment)
            if not to.exists():
                yield f'{path.relative_to(site)} refers to {link}, which does not exist.'
            elif anchor and to in pages and anchor not in pages[to].anchors:
                yield f'{path.relative_to(site)} refers to {link}, but that page has no such anchor.'


def missing_pages(pages):
    "A sentence for each notebook that is not in the table of contents, and each module not in the reference"
    front = pages.get(site / 'index.html')
    listed = {urlsplit(link).path for link in front.links} if front else set()
    for path in sorted(nbs.glob('*.ipynb')):
        if path.name != settings['readme_nb'] and f'{path.stem}.html' not in listed:
            yield f'{path.name} is not in the table of contents: name its part in {nbs.name}/conf.py.'
    anchors = set().union(*(page.anchors for page in pages.values())) if pages else set()
    for path in sorted(package.rglob('*.py')):
        parts = path.relative_to(package.parent).with_suffix('').parts
        if 'assets' not in parts and path.stem[0] != '_' and f'module-{".".join(parts)}' not in anchors:
            yield f'{".".join(parts)} is not in the reference: give its package a page in {nbs.name}/api.'


# ---- what a browser makes of it


class Quiet(SimpleHTTPRequestHandler):
    "A server of files that keeps no log"

    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    "The address of a server of a folder, on this machine only"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


def search_errors(browser, address):
    "A sentence for what is wrong with the search"
    word, page = SEARCH
    browser.open(f'{address}/search.html?q={word}')
    if not browser.wait(
        f"[...document.querySelectorAll('#search-results a')].some(a => a.href.includes('{page}'))", 20
    ):
        yield f'A search for {word} does not find {page}.'


def page_errors(browser, address, shots):
    "A sentence for each page that is wider than the window, complains, or asks another machine for something"
    for width in WIDTHS:
        browser.size(width, 900)
        for name in LOOKED_AT:
            browser.open(f'{address}/{name}.html')
            wide = browser.ask('document.documentElement.scrollWidth')
            if wide > width:
                yield f'{name} is {wide} pixels wide in a window of {width}.'
            yield from (f'{name}: {error}' for error in browser.errors())
            if shots:
                browser.shot(shots / f'{name.replace("/", "_")}_{width}.png')


def browser_errors(shots):
    "What does not hold in a browser"
    path = find_browser()
    if not path:
        print('SKIPPED: the site in a browser, since there is none')
        return []
    browser = Browser(path)
    try:
        with served(site) as address:
            return [*search_errors(browser, address), *page_errors(browser, address, shots)]
    finally:
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='check the site that is there, without building it')
    parser.add_argument('--shots', type=Path, help='folder for pictures of some pages')
    args = parser.parse_args()
    start = time.time()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    built = args.check or build()
    found = (path for path in sorted(site.rglob('*.html')) if '_static' not in path.parts)
    pages = {path.resolve(): Page(path) for path in found}
    errors = [] if built else ['Sphinx has warned: see above.']
    errors += missing_pages(pages)
    errors += dict.fromkeys(broken_links(pages))
    if pages:
        errors += browser_errors(args.shots)
    for error in errors:
        print(error)
    links = sum(len(page.links) for page in pages.values())
    seconds = time.time() - start
    print(f'{site.relative_to(root)}: {len(pages)} pages, {links} links, {seconds:.0f} s; {len(errors)} errors.')
    return 1 if errors or not pages else 0


if __name__ == '__main__':
    sys.exit(main())
