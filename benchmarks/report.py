"""Tables of the documentation from the benchmarks' rows: one file of reStructuredText each."""

import json
from collections import defaultdict

import numpy as np

# By benchmark: what names a line of its table, beside the model; what its columns spread over; and
# the figures.
TABLES = {
    "outliers": (["method"], "left_out", ["auc"]),
    "clustering": (
        ["n_clusters"],
        None,
        ["nmi", "ari", "accuracy", "purity", "davies_bouldin", "dunn", "used"],
    ),
    "sampling": (["how"], None, ["frechet", "precision", "recall", "accuracy"]),
    "density": ([], None, ["test_nats", "train_nats"]),
}
COSTS = ["fit_s", "score_s", "peak_gib"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(folder):
    for name, (labels, spread, figures) in TABLES.items():
        rows = read(folder / f"{name}.jsonl")
        text = "".join(
            table(rows, data, labels, spread, figures) for data in in_order(rows, "data")
        )
        (folder / f"{name}.rst").write_text(text or "Not measured yet.\n")


def table(rows, data, labels, spread, figures):
    """A table of means over seeds, with the range between seeds where there are several."""
    rows = [row for row in rows if row["data"] == data]
    seeds = in_order(rows, "seed")
    lines = defaultdict(list)
    for row in rows:
        lines[(row["model"], *(row.get(label) for label in labels))].append(row)
    columns = []
    if spread == "left_out":
        columns = [(str(value), "auc", {spread: value}) for value in sorted(in_order(rows, spread))]
        figures = [("mean", "auc", {})]
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
    digits = 3 if max(abs(np.array(by_seed))) < 2 else 1
    text = f"{np.mean(by_seed):.{digits}f}"
    half = np.ptp(by_seed) / 2
    return text if round(half, digits) == 0 else f"{text} ± {half:.{digits}f}"


def in_order(rows, key):
    return list(dict.fromkeys(row[key] for row in rows if key in row))
