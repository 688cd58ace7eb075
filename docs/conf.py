"""Sphinx configuration. Build with ``python3 -m nox -s docs``: a warning is an error."""

from importlib.metadata import version as distribution_version

from sphinx.ext.napoleon.docstring import GoogleDocstring

project = "cnisdk"
author = "The cnisdk authors"
copyright = "The cnisdk authors, Apache-2.0"
version = release = distribution_version("cnisdk")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
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
