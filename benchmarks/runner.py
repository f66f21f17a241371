"""Run benchmarks and make their tables.

    python -m benchmarks all --data-home FOLDER
    python -m benchmarks outliers --data mnist --seeds 0 --models DCGMM "nearest neighbour"
    python -m benchmarks report
    python -m benchmarks gpu --help

Every row is measured in a process of its own, with its times and its peak memory, and appended to
docs/benchmarks/NAME.jsonl; rows that are there are not measured again, so that a run can be
interrupted. "all" and "report" also write the tables of the documentation. With `--quick`, a few
rows on a part of the images, in a file of their own.
"""

import argparse
import json
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from benchmarks import models, report
from benchmarks.sets import read

NAMES = [
    "outliers",
    "oneclass",
    "inspection",
    "clustering",
    "sampling",
    "bits",
    "ranking",
    "inpainting",
    "classification",
    "speed",
]
DATA = ["mnist", "fashion_mnist"]
FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
# What --quick trains and scores.
QUICK_MODELS = {"DCGMM", "GaussianMixture diag 49", "GaussianMixture diag", "KMeans",
                "nearest neighbour", "test images", "GridSearchCV"}  # fmt: skip
N_QUICK_TRAIN, N_QUICK_TEST, QUICK_EPOCHS = 5000, 2000, 10


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*NAMES, "all", "report"])
    parser.add_argument("--data", nargs="+", help="sets; else those of the benchmark")
    parser.add_argument("--data-home")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--models", nargs="+", help="some of the models, by name")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    known = {model for name in NAMES for model in import_module(f"benchmarks.{name}").MODELS}
    if unknown := set(options.models or ()) - known:
        parser.error(f"--models must be some of {sorted(known)}; got {sorted(unknown)}.")
    if options.quick:
        options.output = options.output / "quick"
        options.seeds = options.seeds[:1]
    options.output.mkdir(parents=True, exist_ok=True)
    for name in NAMES if options.name == "all" else [options.name]:
        if name != "report":
            run(name, options)
    if options.name in ("all", "report"):
        report.write(options.output)


def run(name, options):
    benchmark = import_module(f"benchmarks.{name}")
    path = options.output / f"{name}.jsonl"
    done = report.read(path)
    n_seeds = getattr(benchmark, "N_SEEDS", None)
    of_benchmark = options.data or getattr(benchmark, "DATA", DATA)
    for data in of_benchmark[:1] if options.quick else of_benchmark:
        for task in benchmark.tasks(data, options.quick):
            for seed, model in product(options.seeds[:n_seeds], benchmark.MODELS):
                key = {"data": data, "seed": seed, "model": model, **task}
                if any(key.items() <= row.items() for row in done) or not wanted(key, options):
                    continue
                # A process of its own, so that its peak memory is that of the row.
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    rows = pool.submit(measure, name, key, options).result()
                with path.open("a") as file:
                    for row in rows:
                        print(json.dumps(row), file=file)
                        print(json.dumps(row), flush=True)


def wanted(key, options):
    """Whether a row is asked for, and what it needs is there."""
    model = key["model"]
    if options.models is not None:
        asked = model in options.models
    elif options.quick:
        asked = model in QUICK_MODELS
    else:
        asked = (
            key["seed"] == options.seeds[0] if model in models.ONCE else model not in models.SLOW
        )
    module = models.REQUIRES.get(model)
    if asked and module is not None and find_spec(module) is None:
        print(
            f"Skipped {model}: it needs {module}, which `pip install skdcgmm[benchmark]` installs."
        )
        return False
    return asked


def measure(name, key, options):
    """The rows of one model in one task, as dictionaries."""
    task = dict(key)
    data_name, model, seed = (task.pop(part) for part in ("data", "model", "seed"))
    data = read(data_name, options.data_home)
    data.name = data_name
    fit_parameters = {}
    if options.quick:
        cut(data)
        if "DCGMM" in model:
            fit_parameters = {"max_epochs": QUICK_EPOCHS}
    benchmark = import_module(f"benchmarks.{name}")
    rows = list(benchmark.measure(data, model, seed, fit_parameters, **task))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [{**key, **row, "peak_gib": round(peak, 2)} for row in rows]


def cut(data):
    for part in ("X_train", "y_train", "X_test", "y_test", "mask"):
        if data.get(part) is not None:
            data[part] = data[part][: N_QUICK_TRAIN if "train" in part else N_QUICK_TEST]
