"""Sphinx: `sphinx-build -W docs docs/_build` builds the pages as HTML; every warning is an error there."""

project = "pymq"
author = copyright = "The pymq developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "description": "Events, queues and remote calls between Python processes"}
