"""The documentation: every public name is there, and numpydoc finds nothing wrong."""

import importlib
import inspect
from pathlib import Path

import pytest
from numpydoc.validate import validate

import skdcgmm
from skdcgmm import datasets, plotting

API = Path(__file__).parents[1] / "docs" / "api"
ACCEPTED = {
    "GL01",  # the summary begins behind the quotes, as PEP 257 has it
    "ES01",  # a summary of one line is enough where it says all
    "EX01",  # examples of methods are in the user guide and the gallery
    "PR04",  # parameters that several estimators share are described once,
    "PR07",  # and X is everywhere what it is in `fit`
    "RT03",  # a type and shape say what most values are
    "SA01",  # see also: the page of the class
    "SS05",  # takes nouns that end in s for verbs
}
CLASSES = [
    f"{module.__name__}.{name}"
    for module in (skdcgmm, plotting)
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
]
FUNCTIONS = [
    f"{module.__name__}.{name}"
    for module in (datasets, plotting)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
]


def find(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def methods(name):
    """Names of the public methods and properties of a class that are this library's own."""
    for attribute, value in inspect.getmembers(find(name)):
        function = value.fget if isinstance(value, property) else value
        if not callable(function) or attribute.startswith("_"):
            continue
        if function.__module__.startswith("skdcgmm"):
            yield f"{name}.{attribute}"


@pytest.mark.parametrize(
    "name", [*CLASSES, *FUNCTIONS, *(method for cls in CLASSES for method in methods(cls))]
)
def test_docstrings_are_numpydoc(name):
    found = validate(name)["errors"]
    assert not [(code, message) for code, message in found if code not in ACCEPTED]


@pytest.mark.skipif(not API.is_dir(), reason="the documentation is not part of this installation")
@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS])
def test_public_names_are_in_the_reference(name):
    pages = [path.read_text() for path in API.glob("*.rst")]
    listed = [name, name.removeprefix("skdcgmm.")]
    entries = [f"auto{kind}:: {each}\n" for kind in ("class", "function") for each in listed]
    own = [page for page in pages if any(entry in page for entry in entries)]
    assert len(own) == 1
    if name in CLASSES and name.startswith("skdcgmm.DCGMM"):
        members = own[0].partition(":members:")[2].partition("\n\n")[0].replace(",", " ").split()
        found = [method.rpartition(".")[2] for method in methods(name)]
        described = set(members) | {"get_feature_names_out"}
        assert {method for method in found if not method.endswith("_")} <= described
