"""Configure the site. `make docs` builds it: sphinx-build -c docs build/docs build/site."""

import shutil
from importlib.metadata import distribution
from pathlib import Path

from docs.docstrings import to_rst
from docs.tree import PLAYGROUND, lay_out
from fsalign_lib import __version__

HERE = Path(__file__).parent
project = "fsalign"
author = "The fsalign authors"
copyright = "the fsalign authors. Code and text: Apache-2.0. Pictures after OpenMoji: CC BY-SA 4.0"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]

# Notebooks are shown as they are committed; a cell with the tag remove-cell is not shown.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables that a cell made have links and formulas, too
nb_ipywidgets_js = {}  # their static figures do, and the scripts would come from another host
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_block"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_use_param = False  # one line for names that share a description
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "fsalign"
html_static_path = [str(HERE / "_static")]
html_extra_path = [str(PLAYGROUND.parents[1])] if PLAYGROUND.is_file() else []
html_favicon = str(HERE / "_static/favicon.svg")
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}  # pages are not where their sources are: see the links in them

# MathJax is served from the site itself. It comes from PyPI's sphinx-mathjax-offline, of which only the files are used.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}
MATHJAX_FONTS = "output/chtml/fonts/woff-v2"


def copy_mathjax(app, exception) -> None:
    """Copy the program and its fonts into the site."""
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    there = Path(app.outdir) / "_static/mathjax"
    shutil.copytree(source / MATHJAX_FONTS, there / MATHJAX_FONTS, dirs_exist_ok=True)
    shutil.copy2(source / "tex-chtml.js", there)


def docstring(app, what, name, obj, options, lines) -> None:
    """Give autodoc a docstring as reStructuredText, in place."""
    lines[:] = to_rst("\n".join(lines)).splitlines()


def setup(app) -> None:
    """Lay out the tree, then let Sphinx read it."""
    lay_out(Path(app.srcdir))
    app.connect("autodoc-process-docstring", docstring, priority=100)  # before napoleon's
    app.connect("build-finished", copy_mathjax)
