"""Sphinx configuration: `make docs` builds the pages and the API reference from the docstrings."""

import optax_gradnorm

project = "optax-gradnorm"
release = optax_gradnorm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]
napoleon_use_rtype = False
autodoc_typehints = "none"
