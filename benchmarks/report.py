"""Tables and plots of the documentation from the benchmarks' rows."""

import json
from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np

# By benchmark: what names a line of its table, beside the model; what its columns spread over; and
# the figures.
TABLES = {
    "outliers": (["method"], "left_out", ["auc"]),
    "inspection": ([], None, ["auc", "called", "pixel_auc", "pixel_auc_by_image"]),
    "clustering": (
        ["n_clusters"],
        None,
        ["nmi", "ari", "accuracy", "purity", "davies_bouldin", "dunn", "used"],
    ),
    "sampling": (["how"], None, ["frechet", "precision", "recall", "accuracy"]),
    "density": ([], None, ["test_nats", "train_nats"]),
    "bits": ([], None, ["bits"]),
    "imputation": (["hidden"], None, ["mse"]),
    "classification": (
        ["labels"],
        None,
        ["accuracy", "mean_0", "least_0", "mean_1", "least_1"],
    ),
}
COSTS = ["fit_s", "score_s", "peak_gib"]
# What the plots show, and on which scale.
PLOTS = {"outliers": ("auc", "linear"), "inspection": ("auc", "linear"),
         "clustering": ("nmi", "linear"), "sampling": ("frechet", "log"),
         "density": ("test_nats", "linear"), "imputation": ("mse", "linear"),
         "bits": ("bits", "log"),
         "classification": ("accuracy", "linear")}  # fmt: skip


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(folder):
    for name, (labels, spread, figures) in TABLES.items():
        rows = read(folder / f"{name}.jsonl")
        text = "".join(
            table(rows, data, labels, spread, figures) for data in in_order(rows, "data")
        )
        if rows:
            plot(rows, labels, *PLOTS[name]).savefig(folder / f"{name}.png", dpi=100)
            text += f".. image:: benchmarks/{name}.png\n   :alt: The same as dots.\n"
        (folder / f"{name}.rst").write_text(text or "Not measured yet.\n")


def lines_of(rows, labels):
    """Rows by the model and the other labels of their line."""
    lines = defaultdict(list)
    for row in rows:
        lines[(row["model"], *(row.get(label) for label in labels))].append(row)
    return lines


def plot(rows, labels, figure, scale):
    """One panel for each data set, one line for each model: every row a dot, their mean a bar."""
    rows = [row for row in rows if row.get(figure) is not None]
    datas = in_order(rows, "data")
    height = 1.2 + 0.25 * max(
        len(lines_of([r for r in rows if r["data"] == data], labels)) for data in datas
    )
    picture, axes = plt.subplots(
        1, len(datas), figsize=(5.5 * len(datas), height), layout="constrained", squeeze=False
    )
    for data, ax in zip(datas, axes[0], strict=True):
        lines = lines_of([row for row in rows if row["data"] == data], labels)
        means = {key: np.mean([row[figure] for row in group]) for key, group in lines.items()}
        ordered = sorted(lines, key=means.get)
        for y, key in enumerate(ordered):
            colour = "C1" if "DCGMM" in key[0] else "C0"
            values = [row[figure] for row in lines[key]]
            ax.plot(values, [y] * len(values), "o", color=colour, alpha=0.4, markersize=4)
            ax.plot(means[key], y, "|", color=colour, markersize=14, markeredgewidth=2)
        names = [", ".join(str(part) for part in key if part is not None) for key in ordered]
        ax.set(title=data, xlabel=figure, xscale=scale, yticks=range(len(names)))
        ax.set_yticklabels(names)
        ax.grid(axis="x", alpha=0.3)
    return picture


def table(rows, data, labels, spread, figures):
    """A table of means over seeds, with the range between seeds where there are several."""
    rows = [row for row in rows if row["data"] == data]
    seeds = in_order(rows, "seed")
    lines = lines_of(rows, labels)
    columns = []
    if spread == "left_out":
        values = sorted(in_order(rows, spread))
        columns = [("mean", "auc", {}), *((str(value), "auc", {spread: value}) for value in values)]
        figures = []
    else:
        figures = [(figure, figure, {}) for figure in figures]
    columns += figures + [(cost, cost, {}) for cost in COSTS]
    n_expected = len(in_order(rows, spread)) if spread == "left_out" else 1
    body = []
    for key, group in lines.items():
        cells = ["" if part is None else str(part) for part in key]
        for title, figure, where in columns:
            found = [r for r in group if where.items() <= r.items() and r.get(figure) is not None]
            complete = title != "mean" or len(found) >= n_expected
            cells.append(cell(found, figure, seeds) if found and complete else "")
        body.append(cells)
    keep = [i for i in range(len(body[0])) if any(cells[i] for cells in body)]
    header = ["model", *labels, *(title for title, _, _ in columns)]
    text = [f".. csv-table:: {data}, seeds {', '.join(map(str, seeds))}", "   :header-rows: 1", ""]
    for cells in [header, *body]:
        text.append("   " + ", ".join(f'"{cells[i]}"' for i in keep))
    return "\n".join([*text, "", ""])


def cell(rows, figure, seeds):
    """Mean over rows, and half of the range between the seeds' means if it shows."""
    by_seed = [np.mean([r[figure] for r in rows if r["seed"] == seed]) for seed in seeds
               if any(r["seed"] == seed for r in rows)]  # fmt: skip
    largest = max(abs(np.array(by_seed)))
    digits = 1 if largest >= 2 else 3 if largest >= 0.1 else 4
    text = f"{np.mean(by_seed):.{digits}f}"
    half = np.ptp(by_seed) / 2
    return text if round(half, digits) == 0 else f"{text} ± {half:.{digits}f}"


def in_order(rows, key):
    return list(dict.fromkeys(row[key] for row in rows if key in row))
