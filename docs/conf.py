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
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "benchmarks", "gallery", "sg_execution_times.rst"]
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "/plot_",
    "download_all_examples": False,
    "show_memory": False,
    "capture_repr": (),
    "abort_on_example_error": True,
}
numpydoc_show_class_members = False
html_theme = "pydata_sphinx_theme"
html_title = "skdcgmm"
html_static_path = ["_static"]
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
