"""Sphinx configuration. Build with ``python3 -m nox -s docs``: a warning is an error."""

import pkgutil
import re
from importlib.metadata import version as distribution_version
from pathlib import Path
from runpy import run_path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util import logging

project = "cnisdk"
author = "The cnisdk authors"
copyright = "The cnisdk authors, Apache-2.0"
version = release = distribution_version("cnisdk")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "pypi.md"]
# A docstring's `.run` may mean the function of its own package: several packages have one.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"cnisdk {release}"
html_copy_source = False
html_show_sphinx = False


def _attribute_docstring(docstring: GoogleDocstring) -> list[str]:
    """Keep a property's docstring as it is: napoleon takes what precedes a colon in it for a type."""
    return list(docstring._consume_to_end())


GoogleDocstring._parse_attribute_docstring = _attribute_docstring  # type: ignore[method-assign]


def _escape_codes(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep the code in "(5) The kernel refused" as text: reStructuredText takes it for the fifth item of a list."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"^(\s*(?::raises [^:]+: )?)\((?=\d+\) )", r"\1\\(", line)


def _skip_field(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of a named tuple, whose docstrings are Python's: the class describes them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def _check_page(app: Sphinx, doctree: nodes.document) -> None:
    """Warn, which fails the build, of a list that begins with another number than 1: it was a code in brackets."""
    for found in doctree.findall(nodes.enumerated_list):
        if found.get("start", 1) != 1:
            logging.getLogger(__name__).warning("a number became a list: %s", found.astext(), location=found)


def _link_names(app: Sphinx, page: str, source: list[str]) -> None:
    """Make links of the names in the first column of the tables for plugin authors."""
    if page == "reference/sdk":
        source[0] = re.sub(r"^\| `(cnisdk[\w.]+)`", _link_to, source[0], flags=re.MULTILINE)


def _link_to(row: re.Match[str]) -> str:
    found = pkgutil.resolve_name(row[1])
    target = f"{found.__module__}.{found.__qualname__}"
    return f"| {{py:obj}}`{row[1]} <{target}>`"


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _escape_codes, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", _skip_field)
    app.connect("doctree-read", _check_page)
    app.connect("source-read", _link_names)


# The pages of the API are made from the code, so that no module is forgotten.
run_path(str(Path(__file__).with_name("publish_api.py")))["main"]()
