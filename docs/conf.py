"""Sphinx configuration: `make docs` builds the pages and the API reference from the docstrings."""

import pathlib
import re
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import inventories
import optax_gradnorm

project = "optax-gradnorm"
copyright = "The optax-gradnorm developers"
release = optax_gradnorm.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
# The lines of the notebooks fit their column.
html_theme_options = {"light_css_variables": {"code-font-size": "78%"}}
html_title = f"optax-gradnorm {release}"
exclude_patterns = ["_build", "jupyter_execute"]
intersphinx_mapping = inventories.write()
nb_execution_mode = "off"  # the notebooks are saved with their outputs
default_role = "py:obj"
myst_heading_anchors = 3
napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
ALIASES = (
    "AxisName",
    "FeatureAxis",
    "Mask",
    "PyTree",
    "StackedAxes",
    "jax.typing.ArrayLike",
)
autodoc_type_aliases = {name: name for name in ALIASES}
python_maximum_signature_line_length = 80

# Sphinx reads nothing outside its folder.
FOLDER = pathlib.Path(__file__).parent
for copied in ("notebooks", "figures"):
    (FOLDER / copied).mkdir(exist_ok=True)
for notebook in FOLDER.parent.glob("notebooks/*.ipynb"):
    shutil.copy(notebook, FOLDER / "notebooks")


def setup(app):
    """Figures of reports are copied; links into a checkout have no page here: their text stays."""

    def copy_figure(match):
        path = FOLDER.parent / match[2]
        shutil.copy(path, FOLDER / "figures")
        return f"![{match[1]}](docs/figures/{path.name})"

    def keep_text(app, relative_path, parent_docname, content):
        text = re.sub(
            r"!\[([^\]]*)\]\((experiments/[^)]*)\)", copy_figure, content[0]
        )
        content[0] = re.sub(r"\[([^\]]*)\]\((?!docs/)[^):]*\)", r"\1", text)

    app.connect("include-read", keep_text)
