"""Sphinx configuration: `make docs` builds the pages of this folder into build/docs, without network access."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sphinx.application import Sphinx

from dermrw import __version__

project = "dermrw"
author = "The dermrw maintainers"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns: list[str] = []
myst_heading_anchors = 3  # so that page.md#heading links work as on GitHub
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
html_theme = "pydata_sphinx_theme"
html_title = f"dermrw {release}"
html_show_sourcelink = False
html_sidebars = {"**": ["globaltoc.html"]}  # all pages: the pages are not nested
html_theme_options = {
    "navbar_center": [],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "search_bar_text": "Search",
}

# Pages link to files of the repository's root, as GitHub needs it; in the site these are pages of their own.
ROOT_PAGES = {
    "SECURITY": "security",
    "MODEL_CARD": "model_card",
    "CONTRIBUTING": "contributing",
    "CHANGELOG": "changelog",
}


def _link_root_pages(app: object, docname: str, source: list[str]) -> None:
    if docname in ROOT_PAGES.values():
        return  # their include directive names the file itself
    for name, page in ROOT_PAGES.items():
        source[0] = source[0].replace(f"](../{name}.md", f"]({page}.md")


def setup(app: Sphinx) -> None:
    """Registers the rewriting of links."""
    app.connect("source-read", _link_root_pages)
