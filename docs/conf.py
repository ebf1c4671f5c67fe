"""How the site is built: Sphinx, MyST for Markdown, and the Furo theme.

    python -m sphinx -W --keep-going -b html docs runs/docs

Pages are Markdown, and read as well on the forge as on the site; the API pages come from the
docstrings. Every warning is an error: a link that leads nowhere stops the build.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

project = "ndavid"
author = "The ndavid authors"
project_copyright = "the ndavid authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "docstrings",
]

# Headings become anchors as they do on the forge, so that page.md#a-heading works in both places.
myst_heading_anchors = 4

add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
# An override without a docstring of its own does what its base says.
autodoc_inherit_docstrings = False
napoleon_use_rtype = False
napoleon_custom_sections = [
    "Params",
    ("Attributes", "params_style"),
    ("Class attributes", "params_style"),
]

html_theme = "furo"
html_title = "ndavid"
# Wide enough for code of 100 columns.
html_css_files = ["width.css"]
html_static_path = ["static"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
