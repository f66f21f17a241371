"""Sphinx configuration."""

import matplotlib as mpl
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import skdcgmm

# The gallery resets to these before each example: pictures without wide margins.
mpl.rcParamsDefault["savefig.bbox"] = "tight"

project = "skdcgmm"
author = "The skdcgmm developers"
copyright = "2026, The skdcgmm developers"
release = version = skdcgmm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.extlinks",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
autodoc_typehints = "none"  # docstrings say types, and shapes
nitpicky = True  # a reference to nowhere is an error
# Not by inventory: the documentation also builds without a network.
_SKLEARN = "https://scikit-learn.org/stable/modules/generated/sklearn.%s.html"
extlinks = {"sklearn": (_SKLEARN, None)}
exclude_patterns = ["_build", "benchmarks", "gallery", "**sg_execution_times.rst"]
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "capture_repr": (),
    "abort_on_example_error": True,
    "show_signature": False,
    "min_reported_time": 3600,  # times are of whatever machine builds the pages
    "remove_config_comments": True,
}
numpydoc_show_class_members = False
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "skdcgmm"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_sidebars = {"*": [], "examples": ["sidebar-nav-bs"]}
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    # Only the gallery has pages below it, and no sections.
    "secondary_sidebar_items": {"*": ["page-toc", "sourcelink"], "auto_gallery/*": []},
}


# Equations as MathML, which browsers draw themselves: no script, and no network.
def _equation(translator, node):
    equation = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    # Browsers draw no space between a function and what it is of.
    space = '<mspace width="0.17em"></mspace>'
    translator.body.append(equation.replace("<mo>&ApplyFunction;</mo>", space))
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_equation, None), (_equation, None))
