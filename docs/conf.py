"""Sphinx configuration: `make docs` builds the pages and the API reference from the docstrings."""

import re

import optax_gradnorm

project = "optax-gradnorm"
copyright = "The optax-gradnorm developers"
release = optax_gradnorm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"optax-gradnorm {release}"
exclude_patterns = ["_build"]
default_role = "py:obj"
myst_heading_anchors = 3
napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("AxisName", "FeatureAxis", "Mask", "PyTree", "StackedAxes")}
python_maximum_signature_line_length = 80


def setup(app):
    """Links into a checkout have no page here: their text stays."""

    def keep_text(app, relative_path, parent_docname, content):
        content[0] = re.sub(r"\[([^\]]*)\]\((?!docs/)[^):]*\)", r"\1", content[0])

    app.connect("include-read", keep_text)
