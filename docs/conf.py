"""How the documents are built: Sphinx with MyST and furo; docstrings come from the package."""

import re

project = "stillroom"
author = "the stillroom authors"
copyright = "2026, the stillroom authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "stillroom"
default_role = "code"  # docstrings are plain text with `names`
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config"}


def plain(app, what, name, obj, options, lines):
    """Docstrings are not reStructuredText: a star is a star, and "Raises:" begins a paragraph."""
    found = []
    for line in lines:
        if line.startswith(("Raises:", "Returns ", "Returns:", "Source:", "Shapes:")):
            found.append("")
        found.append(re.sub(r"(`[^`]*`)|\*", lambda m: m[1] or r"\*", line))
    lines[:] = found


def setup(app):
    app.connect("autodoc-process-docstring", plain)
