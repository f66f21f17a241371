"""The house itself: arrows point down, files stay small, the demo runs."""

import ast
import re
import tomllib
from pathlib import Path

import matplotlib.image
import pytest

import skdcgmm
from skdcgmm.__main__ import main

PACKAGE = Path(skdcgmm.__file__).parent

# From the bottom up: a module may import only from those before it.
ORDER = [
    "_files", "_sklearn_compat",
    "_windows", "_categorical", "_annealing", "_gaussian", "_batch", "_moments",
    "_distributed", "_running", "_merging", "_spreading",
    "layers._base", "layers._emissions", "layers._tables", "layers._convgmm", "layers._maxpool",
    "layers",
    "_presets", "_network", "_tree", "_summary", "_build", "_packing", "_generation",
    "_joint", "_layerwise",
    "_training", "_checkpoint", "_outliers", "_composition", "_parameters", "_images",
    "_validation", "_labels", "_stream", "_reporting", "_fitting", "_saving", "_base",
    "_learning", "_features", "_generative", "_incremental",
    "_estimator", "_detector", "_classifier", "",
    "datasets", "_pictures", "plotting", "__main__",
]  # fmt: skip


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(text):
    """Names of the modules of the package that a file of this text imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        else:
            continue
        for name in full:
            package, _, inside = name.partition(".")
            if package == "skdcgmm":  # the name itself, or that of a module which holds it
                found.add(inside if inside in ORDER else inside.rpartition(".")[0])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import skdcgmm", {""}),
        ("import numpy, skdcgmm._saving as s", {"_saving"}),
        ("def f():\n    import skdcgmm.layers._base", {"layers._base"}),
        ("from skdcgmm import DCGMMEstimator, _tree", {"", "_tree"}),
        ("from skdcgmm.layers._base import Layer", {"layers._base"}),
        ("from skdcgmm.layers import Layer, _base", {"layers", "layers._base"}),
        ("import skdcgmmer", set()),
    ],
)
def test_every_way_to_import_is_seen(text, expected):
    assert imports(text) == expected


def test_every_module_has_its_place():
    assert {module_name(path) for path in PACKAGE.rglob("*.py")} == set(ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_point_down(path):
    place = ORDER.index(module_name(path))
    upward = [name for name in imports(path.read_text()) if ORDER.index(name) >= place]
    assert not upward
    if module_name(path) in ORDER[ORDER.index("_windows") : ORDER.index("layers._base")]:
        assert "sklearn" not in path.read_text().replace("scikit-learn", "")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400


def test_public_names_are_there():
    for name in skdcgmm.__all__:
        assert hasattr(skdcgmm, name)


def test_lowest_versions_are_those_promised():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = project["dependencies"] + extras["plot"] + extras["test"]
    pins = (PACKAGE.parent / "constraints-lowest.txt").read_text()
    for requirement in set(promised) - {"torch>=2.6"}:
        name, version = requirement.split(">=")
        assert re.search(rf"^{name}=={version}(\.0)*$", pins, re.MULTILINE), requirement


@pytest.mark.slow
def test_demo_prints_its_table_and_writes_its_picture(tmp_path, capsys):
    main(["--output", str(tmp_path / "demo.png")])
    printed = capsys.readouterr().out
    assert "GaussianMixture (flat)" in printed
    assert "DCGMM (deep)" in printed
    assert matplotlib.image.imread(tmp_path / "demo.png").shape[0] > 100
