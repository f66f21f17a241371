"""Run benchmarks and make their tables.

    python -m benchmarks all --data-home FOLDER
    python -m benchmarks outliers --data mnist --seeds 0 --models DCGMM "nearest neighbour"
    python -m benchmarks report

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
from pathlib import Path

from benchmarks import report
from skdcgmm.datasets import load_images

NAMES = [
    "outliers",
    "inspection",
    "clustering",
    "sampling",
    "density",
    "bits",
    "imputation",
    "classification",
]
DATA = ["mnist", "fashion_mnist"]
FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
# What --quick trains and scores.
QUICK_MODELS = {"DCGMM", "GaussianMixture diag 49", "GaussianMixture diag", "KMeans",
                "nearest neighbour", "test images"}  # fmt: skip
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
    of_benchmark = options.data or getattr(benchmark, "DATA", DATA)
    for data in of_benchmark[:1] if options.quick else of_benchmark:
        for seed in options.seeds:
            for task in benchmark.tasks(options.quick):
                for model in chosen_models(benchmark, options):
                    key = {"data": data, "seed": seed, "model": model, **task}
                    if any(key.items() <= row.items() for row in done):
                        continue
                    # A process of its own, so that its peak memory is that of the row.
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                        rows = pool.submit(measure, name, key, options).result()
                    with path.open("a") as file:
                        for row in rows:
                            print(json.dumps(row), file=file)
                            print(json.dumps(row), flush=True)


def chosen_models(benchmark, options):
    if options.models is not None:
        unknown = set(options.models) - {m for n in NAMES for m in models_of(n)}
        if unknown:
            raise SystemExit(f"--models must be some of {list(benchmark.MODELS)}; got {unknown}.")
        return [model for model in benchmark.MODELS if model in options.models]
    return [m for m in benchmark.MODELS if not options.quick or m in QUICK_MODELS]


def models_of(name):
    return import_module(f"benchmarks.{name}").MODELS


def measure(name, key, options):
    """The rows of one model in one task, as dictionaries."""
    task = dict(key)
    benchmark = import_module(f"benchmarks.{name}")
    read = getattr(benchmark, "read", load_images)
    data = read(task.pop("data"), data_home=options.data_home)
    fit_parameters = {}
    if options.quick:
        for key in ("X_train", "y_train", "X_test", "y_test", "mask"):
            if data.get(key) is not None:
                data[key] = data[key][: N_QUICK_TRAIN if "train" in key else N_QUICK_TEST]
        if "DCGMM" in task["model"]:
            fit_parameters = {"max_epochs": QUICK_EPOCHS}
    rows = list(
        benchmark.measure(data, task.pop("model"), task.pop("seed"), fit_parameters, **task)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [{**key, **row, "peak_gib": round(peak, 2)} for row in rows]
