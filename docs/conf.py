"""Sphinx configuration."""

import skdcgmm

project = "skdcgmm"
author = "The skdcgmm developers"
copyright = "2026, The skdcgmm developers"
release = version = skdcgmm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build", "benchmarks"]
numpydoc_show_class_members = False
html_theme = "pydata_sphinx_theme"
html_title = "skdcgmm"
html_static_path = ["_static"]
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
