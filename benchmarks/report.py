"""Tables and plots of the documentation from the benchmarks' rows."""

import json
from collections import defaultdict
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

COSTS = ("fit_s", "score_s", "peak_gib")


class Table(NamedTuple):
    """What a table shows of rows, one for each set of images.

    `shows` is its first line; `names` tell its lines apart, and one of them may `group` them;
    `figures` are its columns, or by the values of `spread` the first one. `plotted` is the figure
    of the plot above. A `part` is one of the benchmark of speed.
    """

    shows: str
    names: list[str]
    figures: list[str]
    plotted: str | None = None
    lower_is_better: bool = False
    scale: str = "linear"
    group: str | None = None
    spread: str | None = None
    costs: tuple[str, ...] = COSTS
    part: str | None = None


TABLES = {
    "outliers": Table(
        "area under the ROC curve of a class that training has not seen, by this class",
        ["model", "method"], ["auc"], "auc", spread="left_out",
    ),
    "oneclass": Table(
        "area under the ROC curve of the one class that training has seen, by this class",
        ["model"], ["auc"], "auc", spread="normal",
    ),
    "inspection": Table(
        "area under the ROC curve of defects, by image and by pixel",
        ["model"], ["auc", "called", "pixel_auc", "pixel_auc_by_image"], "auc",
    ),
    "clustering": Table(
        "clusters against classes, which no model has seen; higher is better",
        ["model", "then", "n_clusters"], ["nmi", "ari", "accuracy", "used"], "nmi",
        group="n_clusters", costs=("fit_s",),
    ),
    "sampling": Table(
        "distance of samples from images (lower is better), and what they teach a classifier",
        ["model", "how"], ["frechet", "precision", "recall", "accuracy"], "frechet",
        lower_is_better=True, scale="log",
    ),
    "bits": Table(
        "bits a value of the test images; lower is better",
        ["model"], ["bits"], "bits", lower_is_better=True,
    ),
    "ranking": Table(
        "bits a value of the candidates of one grid search, by rank; lower is better",
        ["candidate"], ["held_out_bits", "test_bits"], "test_bits", lower_is_better=True,
        costs=("fit_s",),
    ),
    "inpainting": Table(
        "mean squared error on hidden pixels, in levels of 0-255; lower is better",
        ["model", "hidden"], ["mse"], "mse", lower_is_better=True, group="hidden",
    ),
    "classification": Table(
        "accuracy on test images, and samples taken for their class; higher is better",
        ["model", "labels"], ["accuracy", "mean_0", "least_0", "mean_1", "least_1"], "accuracy",
        group="labels",
    ),
    "speed_step": Table(
        "milliseconds for 250 images, beside the bare matrix products",
        ["stack"], ["step_ms", "step_products_ms", "score_ms", "score_products_ms"],
        plotted="step_ms", lower_is_better=True, scale="log",
        costs=(), part="step",
    ),
    "speed_fit": Table(
        "seconds of a default fit to all training images, by its parts",
        ["pixels", "of_fit"], ["fit_s", "share"],
        costs=(), part="fit",
    ),
    "speed_pace": Table(
        "seconds to the held-out density that scikit-learn's mixture ends with",
        ["stack"], ["fit_s", "nats", "share"],
        costs=(), part="pace",
    ),
    "speed_growth": Table(
        "milliseconds for 250 images, by their side and the number of components",
        ["side", "components"], ["parameters", "step_ms", "score_ms"],
        costs=(), part="growth",
    ),
    "speed_files": Table(
        "seconds of one epoch over images in a file, and memory with libraries",
        ["n_images"], ["file_gib", "fit_s", "score_s", "memory_gib"],
        costs=(), part="files",
    ),
    "speed_processes": Table(
        "seconds of two epochs over the same images",
        ["processes"], ["fit_s", "nats"],
        costs=(), part="processes",
    ),
    "speed_compiled": Table(
        "torch.compile: seconds to compile, then milliseconds for 250 images",
        ["stack", "what"], ["compile_s", "plain_ms", "compiled_ms", "calls_to_pay", "error"],
        costs=(), part="compiled",
    ),
}  # fmt: skip
# Digits after the point; else three.
DIGITS = {"frechet": 1, "mse": 0, "used": 0, "peak_gib": 1, "file_gib": 2, "memory_gib": 2,
          "nats": 1, "parameters": 0, "calls_to_pay": 0, "share": 2}  # fmt: skip


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(folder):
    for name, table in TABLES.items():
        rows = read(folder / f"{name if table.part is None else 'speed'}.jsonl")
        rows = [row for row in rows if row.get("part") == table.part]
        text = ""
        if rows and table.plotted:
            plot(rows, table).savefig(folder / f"{name}.png", dpi=100)
            plt.close()
            text = f".. image:: benchmarks/{name}.png\n   :alt: {table.shows}, as dots.\n\n"
        for data in in_order(rows, "data"):
            text += csv([row for row in rows if row["data"] == data], data, table)
        (folder / f"{name}.rst").write_text(text or "Not measured yet.\n")


def lines_of(rows, table):
    """Rows by what names their line, best first within a group."""
    lines = defaultdict(list)
    for row in rows:
        lines[tuple(row.get(name) for name in table.names)].append(row)
    if table.plotted is None:
        return lines
    sign = 1 if table.lower_is_better else -1

    def order(key):
        found = [row[table.plotted] for row in lines[key] if row.get(table.plotted) is not None]
        group = str(key[table.names.index(table.group)]) if table.group else ""
        return group, sign * np.mean(found) if found else np.inf

    return {key: lines[key] for key in sorted(lines, key=order)}


def plot(rows, table):
    """One panel for each data set, one line for each model: every row a dot, their mean a bar."""
    figure = table.plotted
    rows = [row for row in rows if row.get(figure) is not None]
    panels = {data: lines_of([r for r in rows if r["data"] == data], table)
              for data in in_order(rows, "data")}  # fmt: skip
    n_columns = min(2, len(panels))
    n_lines = [len(lines) for lines in panels.values()]
    heights = [
        1.2 + 0.25 * max(n_lines[i : i + n_columns]) for i in range(0, len(panels), n_columns)
    ]
    picture, axes = plt.subplots(
        len(heights), n_columns, figsize=(5.5 * n_columns, sum(heights)), layout="constrained",
        squeeze=False, height_ratios=heights,
    )  # fmt: skip
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for (data, lines), ax in zip(panels.items(), axes.flat, strict=False):
        means = {key: np.mean([row[figure] for row in group]) for key, group in lines.items()}
        ordered = sorted(lines, key=means.get)
        for y, key in enumerate(ordered):
            colour = "C0" if is_other(key) else "C1"
            values = [row[figure] for row in lines[key]]
            ax.plot(values, [y] * len(values), "o", color=colour, alpha=0.4, markersize=4)
            ax.plot(means[key], y, "|", color=colour, markersize=14, markeredgewidth=2)
        names = [", ".join(str(part) for part in key if part is not None) for key in ordered]
        ax.set(title=data, xlabel=figure, xscale=table.scale, yticks=range(len(names)),
               ylim=(-0.6, len(names) - 0.4))  # fmt: skip
        ax.set_yticklabels(names)
        ax.grid(axis="x", alpha=0.3)
    return picture


def is_other(key):
    """Whether a line is no stack of ours."""
    own = ("DCGMM", "tiles", "atoms", "pyramid", "auto", "flat")
    return not str(key[0]).startswith(own)


def csv(rows, data, table):
    """A table of means over seeds, with half of the range between seeds where there are several."""
    seeds = in_order(rows, "seed")
    columns = [(figure, figure, {}) for figure in table.figures]
    if table.spread is not None:
        (figure,), values = table.figures, sorted(in_order(rows, table.spread))
        columns = [("mean", figure, {})]
        columns += [(str(value), figure, {table.spread: value}) for value in values]
    columns += [(cost, cost, {}) for cost in table.costs]
    n_expected = len(in_order(rows, table.spread)) if table.spread is not None else 1
    body = []
    for key, group in lines_of(rows, table).items():
        cells = ["" if part is None else str(part) for part in key]
        for title, figure, where in columns:
            found = [r for r in group if where.items() <= r.items() and r.get(figure) is not None]
            complete = title != "mean" or len({r[table.spread] for r in found}) == n_expected
            cells.append(cell(found, figure, seeds) if found and complete else "")
        body.append(cells)
    keep = [i for i in range(len(body[0])) if any(cells[i] for cells in body)]
    header = [*table.names, *(title for title, _, _ in columns)]
    title = f"{data}: {table.shows}; seeds {', '.join(map(str, seeds))}"
    text = [f".. csv-table:: {title}", "   :header-rows: 1", ""]
    for cells in [header, *body]:
        text.append("   " + ", ".join(f'"{cells[i]}"' for i in keep))
    return "\n".join([*text, "", ""])


def cell(rows, figure, seeds):
    """Mean over rows, and half of the range between the seeds' means if it shows."""
    if isinstance(rows[0][figure], str):
        return rows[0][figure]
    by_seed = [np.mean([r[figure] for r in rows if r["seed"] == seed]) for seed in seeds
               if any(r["seed"] == seed for r in rows)]  # fmt: skip
    digits = DIGITS.get(figure, 3)
    if figure.endswith(("_s", "_ms")):
        digits = 0 if max(by_seed) >= 20 else 1
    text = f"{np.mean(by_seed):,.{digits}f}".replace(",", " ")
    half = np.ptp(by_seed) / 2
    return text if round(half, digits) == 0 else f"{text} ± {half:.{digits}f}"


def in_order(rows, key):
    return list(dict.fromkeys(row[key] for row in rows if key in row))
