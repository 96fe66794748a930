"""Sphinx: `sphinx-build -W docs docs/_build` builds the pages as HTML; every warning is an error there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "pymq"
author = copyright = "The pymq developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
default_role = "code"  # what the docstrings mean by backticks
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures: most are the standard library's, and would be links that lead nowhere
suppress_warnings = ["ref.python"]  # some of those types have namesakes: pymq.Queue and pymq.asyncio.Queue
html_extra_path = ["llms.txt"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "description": "Events, queues and remote calls between Python processes"}
