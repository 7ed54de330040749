"""Configuration of the documentation: python -m sphinx -W --keep-going docs docs/_build."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "_ext")]

# Notebooks, and the commands in them, run this checkout in this environment.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the debugger's word on frozen modules

import metajax  # noqa: E402

project = "metajax"
copyright = "the metajax authors"
version = release = metajax.__version__

extensions = ["myst_nb", "sphinx_design", "site_pages"]
exclude_patterns = ["_build", "_ext", "**/.ipynb_checkpoints"]
templates_path = []

html_theme = "sphinx_book_theme"
html_title = "metajax"
html_static_path = []
html_copy_source = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# Every notebook runs at every build, in a folder that is removed; an error in a cell fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_cache_path = str(DOCS / "_build" / ".jupyter_cache")  # for -D nb_execution_mode=cache
nb_merge_streams = True

highlight_language = "none"
