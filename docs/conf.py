"""Sphinx: `pip install -e ".[docs]"`, then `sphinx-build -W -b html docs docs/_build`.

The build runs the gallery (`examples/gallery`) in its reduced setting; with FASTSPARSE_EXAMPLES=full in the
environment, in the full one. Scripts whose packages are not installed, or whose files the environment does not name,
are shown and not run.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "docs" / "_extensions")]
os.environ.setdefault("FASTSPARSE_EXAMPLES", "small")

import fastsparse  # noqa: E402

GALLERY = ROOT / "examples" / "gallery"


def packages_of(script: Path) -> set[str]:
    """Top-level packages that a script imports, in functions, too, or finds without importing them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add("torch" if node.module == "fastsparse.torch" else node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("find_spec"):
            found |= {str(name.value).partition(".")[0] for name in node.args if isinstance(name, ast.Constant)}
        if isinstance(node, ast.Import) and any(name.name == "fastsparse.torch" for name in node.names):
            found.add("torch")
    return found


def runnable(script: Path) -> bool:
    """Whether every package that the script imports is installed, and every variable that it must have is set."""
    needed = re.findall(r'os\.environ\["(\w+)"\]', script.read_text("utf-8"))
    return all(find_spec(name) for name in packages_of(script)) and all(name in os.environ for name in needed)


# ------------------------------------------------------------------------------------------------------------ project

project = "fastsparse"
author = "the fastsparse contributors"
copyright = author  # noqa: A001 - Sphinx's name
version = release = fastsparse.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "repository_pages",
    "docstrings",
    "matrices",
    "reference",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "_extensions"]
nitpicky = False
default_role = "literal"
# Words of types such as (out_channels, in_channels) are attributes of several classes.
suppress_warnings = ["config.cache", "ref.python"]

# ------------------------------------------------------------------------------------------------------------ Markdown

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ----------------------------------------------------------------------------------------------------------- reference

autosummary_generate = True
autosummary_imported_members = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("sklearn",) if find_spec(name) is None]
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_preprocess_types = False

# ------------------------------------------------------------------------------------------------------------- gallery

sphinx_gallery_conf = {
    "examples_dirs": [str(GALLERY)],
    "gallery_dirs": ["gallery"],
    "filename_pattern": "|".join(re.escape(str(path)) for path in sorted(GALLERY.rglob("plot_*.py")) if runnable(path))
    or "nothing can run",
    "ignore_pattern": r"__init__\.py|[/\\]_",
    "doc_module": ("fastsparse",),
    "reference_url": {"fastsparse": None},
    "backreferences_dir": "gallery/backreferences",
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "ignore_repr_types": r"matplotlib\.",  # what the last call of a block returns
    "min_reported_time": 0,
    "matplotlib_animations": False,
}

for path in (ROOT / "docs" / "gallery").glob("*/plot_*.*"):  # what was made of scripts that are gone
    if not any(GALLERY.glob(f"{path.parent.name}/{path.name.partition('.')[0].removesuffix('_codeobj')}.py")):
        path.unlink()

# ---------------------------------------------------------------------------------------------------------------- HTML

html_theme = "pydata_sphinx_theme"
html_title = "fastsparse"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "logo": {"text": "fastsparse"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_sidebars = {name: [] for name in ("index", "getting-started", "concepts", "performance", "more")}
