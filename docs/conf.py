"""Configure the site. `make docs` builds it: sphinx-build -c docs build/docs build/site."""

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from docstrings import to_rst  # noqa: E402
from tree import REPOSITORY, lay_out  # noqa: E402

from fsalign_lib import __version__  # noqa: E402

project = "fsalign"
author = "The fsalign authors"
copyright = "the fsalign authors. Code and text: Apache-2.0. Pictures after OpenMoji: CC BY-SA 4.0"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]

# Notebooks are shown as they are committed; a cell with the tag remove-cell is not shown.
nb_execution_mode = "off"
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
html_title = "fsalign"
html_static_path = [str(HERE / "_static")]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "footer_icons": [],
    "top_of_page_buttons": [],
}
copybutton_exclude = ".linenos, .gp"
templates_path = []

# MathJax is served from the site itself. It comes from PyPI's sphinx-mathjax-offline, of which only the files are used.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}
MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")


def copy_mathjax(app, exception) -> None:
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    for name in MATHJAX if exception is None else ():
        there = Path(app.outdir) / "_static/mathjax" / name
        there.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        copy(source / name, there, **({"dirs_exist_ok": True} if (source / name).is_dir() else {}))


def docstring(app, what, name, obj, options, lines) -> None:
    lines[:] = to_rst("\n".join(lines)).splitlines()


def setup(app) -> None:
    lay_out(Path(app.srcdir))
    app.connect("autodoc-process-docstring", docstring, priority=100)  # before napoleon's
    app.connect("build-finished", copy_mathjax)
