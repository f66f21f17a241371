"""The house itself: arrows point down, rooms stay small, the demo runs."""

import ast
import re
import tomllib
from pathlib import Path

import matplotlib.image
import pytest

import skdcgmm
from skdcgmm.__main__ import main

PACKAGE = Path(skdcgmm.__file__).parent

# A module may import from its own folder, and from those of earlier lines.
FLOORS = [
    {"files"},
    {"data", "model"},
    {"training", "analysis"},
    {"published"},
    {"estimators"},
    {"__init__"},
    {"datasets", "metrics", "plotting"},
    {"__main__"},
]
# Lines without docstrings, comments and blanks.
MAX_LINES, MAX_FUNCTION = 400, 60
MAX_FILES, MAX_FOLDERS, MAX_DEPTH = 46, 9, 3


def place(module):
    """The folder, or file beside the folders, that a module of the package is in."""
    parts = module.split(".")[1:]
    return parts[0] if parts and (PACKAGE / parts[0]).is_dir() else (parts or ["__init__"])[0]


def imports(text):
    """Names of modules, and names in them, that a file of this text imports of the package."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            full = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in full if name.split(".")[0] == "skdcgmm")


def in_package(path):
    return ".".join(["skdcgmm", *path.relative_to(PACKAGE).with_suffix("").parts])


def floor(module):
    return next(i for i, places in enumerate(FLOORS) if place(module) in places)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import skdcgmm", ["skdcgmm"]),
        ("import numpy, skdcgmm.files as f", ["skdcgmm.files"]),
        ("def f():\n    import skdcgmm.model.tree", ["skdcgmm.model.tree"]),
        ("from skdcgmm.model import tree", ["skdcgmm.model.tree"]),
        ("from skdcgmm.model.tree import Tree", ["skdcgmm.model.tree.Tree"]),
        ("import skdcgmmer", []),
    ],
)
def test_every_way_to_import_is_seen(text, expected):
    assert list(imports(text)) == expected


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=in_package)
def test_no_arrow_goes_up_and_none_in_a_circle(path):
    own = in_package(path)
    for name in imports(path.read_text()):
        # What the package offers to users is in its own file, above all folders.
        name = "skdcgmm.__init__" if name in {f"skdcgmm.{n}" for n in skdcgmm.__all__} else name
        assert place(name) == place(own) or floor(name) < floor(own), name


def code_lines(node, text):
    """Numbers of the lines of a node that are neither docstring nor comment nor blank."""
    documented = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            part
        ):
            documented.update(range(part.body[0].lineno, part.body[0].end_lineno + 1))
    lines = text.splitlines()
    span = (getattr(node, "lineno", 1), getattr(node, "end_lineno", len(lines)))
    return [
        number
        for number in range(span[0], span[1] + 1)
        if number not in documented
        and lines[number - 1].strip().lstrip("#") == lines[number - 1].strip() != ""
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=in_package)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(code_lines(tree, text)) <= MAX_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert len(code_lines(node, text)) <= MAX_FUNCTION, node.name


def test_the_house_stays_small():
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) <= MAX_FILES
    assert len({path.parent for path in files}) <= MAX_FOLDERS


@pytest.mark.parametrize(
    "name", [n for n in skdcgmm.__all__ if isinstance(getattr(skdcgmm, n), type)]
)
def test_no_ladder_of_classes(name):
    def depth(cls):
        # One class stands in for scikit-learn's where that is old.
        own = cls.__module__.startswith("skdcgmm.") and cls.__name__ != "CallbackSupportMixin"
        return own + max((depth(base) for base in cls.__bases__), default=0)

    assert depth(getattr(skdcgmm, name)) <= MAX_DEPTH


def test_public_names_are_there():
    for name in skdcgmm.__all__:
        assert hasattr(skdcgmm, name)


def test_lowest_versions_are_those_promised():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = project["dependencies"] + extras["plot"] + extras["test"]
    pins = (PACKAGE.parent / "constraints-lowest.txt").read_text()
    for requirement in set(promised) - {"torch>=2.9"}:
        name, version = requirement.split(">=")
        assert re.search(rf"^{name}=={version}(\.0)*$", pins, re.MULTILINE), requirement


@pytest.mark.slow
def test_demo_prints_its_table_and_writes_its_picture(tmp_path, capsys):
    main(["--output", str(tmp_path / "demo.png")])
    printed = capsys.readouterr().out
    assert "GaussianMixture (flat)" in printed
    assert "DCGMM (deep)" in printed
    assert matplotlib.image.imread(tmp_path / "demo.png").shape[0] > 100
