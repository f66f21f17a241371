"""What a GPU makes of a training step and of a score, beside the CPU of the same machine.

    python -m benchmarks gpu --data-home FOLDER

Writes a row for each stack and size of batch: images a second on both; the share of the time on the
GPU that the bare matrix products would take at the rate that a large one reaches there; and how far
log densities of the same stack are from those of the CPU, relative to their size. Ends with an
error if these differ, or without a GPU. `--device cpu` tries the script where there is none.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import steps
from benchmarks.sets import read
from skdcgmm.model import computing

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
BATCH_SIZES = [250, 2000]
TOLERANCE = 1e-5
# Side of the square matrices whose product measures the rate.
SIDE = {"cpu": 1024, "cuda": 8192}


def main(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-home")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stacks", nargs="+", choices=steps.STACKS, default=list(steps.STACKS))
    parser.add_argument("--output", type=Path, default=FOLDER / "gpu.jsonl")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here. `--device cpu` tries this script without one.")
    data = read(options.data, options.data_home)
    rate = product_rate(device)
    rows = []
    for name in options.stacks:
        for batch_size in BATCH_SIZES:
            rows.append(row := measure(name, batch_size, data, device, rate))
            print(json.dumps(row), flush=True)
    options.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    largest = max(row["difference"] for row in rows)
    if not largest <= TOLERANCE:
        sys.exit(f"Log densities differ by {largest:.1e} of their size, more than {TOLERANCE:.0e}.")


def measure(name, batch_size, data, device, rate):
    est = steps.estimator(name, data.image_shape)
    stack, x = steps.started(est, data.X_train, batch_size=batch_size)
    with computing(x.device):
        score = steps.score(stack, x)
        reference = score()  # (N,)
        routes = {"step": steps.step(stack, x), "score": score}
        times = {"cpu": steps.medians(routes, x.device)}
    # The steps have changed the parameters.
    stack, x = steps.started(est, data.X_train, device, batch_size=batch_size)
    with computing(device):
        score = steps.score(stack, x)
        difference = (score().cpu() - reference).abs() / reference.abs()
        routes = {"step": steps.step(stack, x), "score": score}
        times["device"] = steps.medians(routes, device)
    row = {"stack": name, "batch_size": batch_size, "device": device_name(device)}
    for where, of_routes in times.items():
        row |= {f"{k}_images_s_{where}": round(batch_size / v * 1e3) for k, v in of_routes.items()}
    for route, with_gradients in {"step": True, "score": False}.items():
        at_rate = steps.n_operations(stack, batch_size, gradients=with_gradients) / rate
        row[f"{route}_share"] = round(at_rate * 1e3 / times["device"][route], 3)
    return {
        **row,
        "teraflops": round(rate / 1e12, 2),
        "difference": float(f"{difference.max().item():.1e}"),
        "torch": torch.__version__,
    }


def product_rate(device):
    """Floating-point operations a second of one large product, in full single precision."""
    a = torch.rand(SIDE[device.type], SIDE[device.type], device=device)
    with computing(device):
        times = steps.medians({"product": lambda: a @ a}, device)
    return 2 * len(a) ** 3 / (times["product"] / 1e3)


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
