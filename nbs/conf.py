"""How Sphinx makes the site from the executed notebooks of this folder. Build it by `python tools/site.py`.

The notebooks are taken as they are, outputs included; no cell is run. Three things are done on the way (`prepare`):
cells with `#| hide` are left out, the lines with nbdev's directives too, and titles get the number of their chapter.
"""

import json
import re
import sys
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

nbs = Path(__file__).resolve().parent
root = nbs.parent
sys.path.insert(0, str(root))
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']
lib = settings['lib_name']

# ---- the book

PARTS = {  # the table of contents: the notebooks of a part; one belongs to the first part that matches its name
    'Start here': ['*_one_page'],
    'Foundations': ['00*', '01_*', '04a_*', '05*'],
    'Data': ['*_data.*'],
    'Theory': ['*_theory.*'],
    'Masks': ['*_masks.*'],
    'Diffusion': ['*_diffusion.*'],
    'Embedded model': ['*_embedded.*'],
    'Synthesis': ['*_synthesis.*'],
    'Methods': ['*_methods.*', '4?_*'],
    'Mixers': ['*_mixers.*', '64_*'],
    'Training': ['*_training.*', '60a_*'],
    'Experiments': ['*_experiments.*'],
    'Commands': ['*_commands.*', '90_*'],
    'Results': ['7?_*', '8?_*', '8?[a-z]_*'],
    'Reference': ['9?_*'],
}
PAGES = {'Start here': ['glossary'], 'Reference': ['api/index']}  # pages that are no notebooks


def chapters():
    "{part: the names of its pages}"
    book = {part: [] for part in PARTS}
    for path in sorted(nbs.glob('*.ipynb')):
        matching = (part for part, patterns in PARTS.items() if any(fnmatch(path.stem, p) for p in patterns))
        if part := next(matching, None):
            book[part].append(path.stem)
    return {part: names + PAGES.get(part, []) for part, names in book.items()}


def contents():
    "The table of contents, which is appended to the front page"
    blocks = [
        f':::{{toctree}}\n:hidden:\n:caption: {part}\n\n' + '\n'.join(pages) + '\n:::'
        for part, pages in chapters().items()
    ]
    return '\n\n'.join(blocks)


# ---- from a notebook to a page

DIRECTIVE = re.compile(r'^#\s*\|\s*(.*)\n?', re.M)
FLAGS = settings['tst_flags'].split()


def directives(cells):
    "The words of each directive in some cells: ['export'], ['default_exp', 'core'], ..."
    text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
    return [line.split() for line in DIRECTIVE.findall(text) if line.strip()]


def prepare_code(cell):
    "A code cell without directives, or None if readers should not see it; what they meant becomes tags"
    names = {words[0] for words in directives([cell])}
    if names & {'hide', 'default_exp'}:
        return None
    tags = ['exported'] if names & {'export', 'exporti', 'exports'} else []
    tags += [f'flag-{name}' for name in FLAGS if name in names]
    if ['echo:', 'false'] in directives([cell]):
        tags.append('remove-input')
    source = DIRECTIVE.sub('', ''.join(cell['source'])).strip()
    return {**cell, 'source': source, 'metadata': {**cell['metadata'], 'tags': tags}}


def prepare_notebook(name, notebook):
    "A notebook as its page shows it"
    title, *rest = notebook['cells']
    text = ''.join(title['source'])
    if number := re.match(r'(\d+)([a-z]?)_', name):
        text = text.replace('# ', f'# {int(number[1])}{number[2]}. ', 1)
    if module := next((words[1] for words in directives(rest) if words[0] == 'default_exp'), None):
        if not module.startswith('__'):
            text += f'\n\nThe cells marked *exported* make the module {{py:mod}}`{lib}.{module}`.'
    if name == root_doc:
        rest.append(dict(cell_type='markdown', id='contents', metadata={}, source=contents()))
    cells = [prepare_code(cell) if cell['cell_type'] == 'code' else cell for cell in rest]
    return {**notebook, 'cells': [{**title, 'source': text}, *filter(None, cells)]}


def prepare(app, docname, content):
    "Change the text of a source file before it is read"
    if docname.startswith('api/'):
        text = content[0].replace('<modules>', modules(Path(docname).name))
        content[0] = text.replace('<front door>', front_door())
    elif (nbs / f'{docname}.ipynb').exists():
        content[0] = json.dumps(prepare_notebook(docname, json.loads(content[0])))


# ---- the reference

PACKAGE = root / settings['lib_path']


def modules(package):
    "Directives that document every module of a package; `root` are those beside the packages"
    folder = PACKAGE if package == 'root' else PACKAGE / package
    text = ''
    for path in sorted(folder.glob('*.py')):
        if path.stem[0] == '_':
            continue
        name = '.'.join(path.relative_to(root).with_suffix('').parts)
        notebook = re.search(r'File to edit: \S*/(\S+\.ipynb)', path.read_text(encoding='utf-8'))[1]
        text += f'## {name}\n\nExplained in the chapter [](../{notebook}).\n\n'
        text += f'```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n\n'
    return text


def front_door():
    "A table of the names that `sgdmix` itself offers"
    import sgdmix

    names = [f'   ~{getattr(sgdmix, name).__module__}.{name}' for name in sgdmix.__all__]
    return '```{eval-rst}\n.. autosummary::\n   :nosignatures:\n\n' + '\n'.join(names) + '\n```'


SPAN = re.compile(r'(``.+?``|(?<!`)`[^`]+`(?!`))')


def as_rst(app, what, name, obj, options, lines):
    "Docstrings are written as plain text with `code`; make them reStructuredText"
    for k, line in enumerate(lines):
        parts = SPAN.split(line)  # plain text and code in turn
        text = ''
        for i, part in enumerate(parts):
            if i % 2:
                before = '\\ ' if re.search(r'[\w(]$', text) else ''
                after = '\\ ' if re.match(r'\w', parts[i + 1]) else ''
                text += f'{before}``{part.strip("`")}``{after}'
            else:
                text += re.sub(r'[*|\\]|(?<=\w)_(?!\w)', r'\\\g<0>', part)
        lines[k] = text


# ---- formulas

PLAINER = {  # what docutils does not know -> the same in what it knows
    r'\\[bB]igg?[lrm]?(?![a-zA-Z])': '',
    r'\\dots(?![a-zA-Z])': r'\\ldots',
    r'\\tag\{(.*?)\}': r'\\qquad(\1)',
    r'\\([dt]?frac)\s*(\d)\s*(\d)': r'\\\1{\2}{\3}',
}


def mathml(node, block):
    "A formula in MathML, which browsers draw themselves: no script, no network"
    tex = node.astext()
    for pattern, plain in PLAINER.items():
        tex = re.sub(pattern, plain, tex)
    try:
        return tex2mathml(tex, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning('The formula %s cannot be drawn: %s', tex, error, location=node)
        return tex


def visit_math(self, node):
    self.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def visit_math_block(self, node):
    self.body.append(f'<div class="math">{mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    "What Sphinx calls"
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math_block, None))
    app.connect('source-read', prepare)
    app.connect('autodoc-process-docstring', as_rst, priority=400)  # before napoleon


# ---- Sphinx and its extensions

project = settings['title']
author = settings['author']
copyright = settings['copyright']
release = version = settings['version']
root_doc = 'index'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.napoleon']
exclude_patterns = ['_*', '**/.*', '**/_*', 'results', 'images']
nitpicky = True
nitpick_ignore_regex = [('py:.*', rf'(?!{lib}\b).*')]  # names of other libraries, whose pages are on the network

nb_execution_mode = 'off'
nb_merge_streams = True
nb_output_stderr = 'remove'
myst_enable_extensions = ['amsmath', 'colon_fence', 'dollarmath']
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_math_renderer = 'mathml'
html_theme = 'sphinx_book_theme'
html_title = settings['title']
html_favicon = 'images/icon.svg'
html_static_path = ['site.css']
html_css_files = ['site.css']
html_copy_source = False
html_context = dict(default_mode='auto')  # light or dark, as the browser prefers
html_theme_options = dict(
    repository_url=settings['git_url'],
    repository_branch=settings['branch'],
    path_to_docs=settings['nbs_path'],
    use_repository_button=True,
    use_download_button=False,
    use_fullscreen_button=False,
    show_toc_level=2,
    navbar_persistent=[],
)
