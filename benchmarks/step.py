"""Time of a training step, beside the matrix products it must do and beside plain differences.

    python -m benchmarks.step

For stacks of 28 x 28 images and batches of 100, JSON lines of the medians over the repeats, in
milliseconds: the step of the layer-wise objective; `products`, the bare matrix products of its
scores and their gradients, of the same shapes; and `materialised`, the same gradients through the
N x H x W x K x D tensor of differences. The three take turns within each repeat.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from skdcgmm import ConvGMM
from skdcgmm._batch import Batch
from skdcgmm._build import build
from skdcgmm._composition import name_layers
from skdcgmm._layerwise import Layerwise
from skdcgmm._presets import PRESETS, preset
from skdcgmm._windows import unfold
from skdcgmm.layers import MixtureLayer

STACKS = {
    **{name: lambda name=name: preset(name, (1, 28, 28)) for name in PRESETS},
    "dcgmm-b, lower layer unshared": lambda: [ConvGMM(49, 8, 2, shared=False), ConvGMM(49)],
}
BATCH_SIZE = 100
N_CALLS = 3  # in one timing


def bare_products(network, device):
    """The products of (x, x^2) with the parameters, forward and back, on ready operands."""
    operands = []
    for layer in network.mixtures.values():
        n_windows = layer.output_shape[1] * layer.output_shape[2]
        n_mixtures, n_components, n_values = layer.emission.means.shape
        rows = BATCH_SIZE * n_windows // n_mixtures
        x = torch.rand(n_mixtures, rows, 2 * n_values, device=device)
        scores = torch.rand(n_mixtures, rows, n_components, device=device)
        parameters = torch.rand(n_mixtures, n_components, 2 * n_values, device=device)
        operands.append((x, parameters, scores))

    def run():
        for x, parameters, gradient in operands:
            torch.bmm(x, parameters.mT)
            torch.bmm(gradient.mT, x)

    return run


def materialised(network, x):
    """Gradients of the maximum scores through explicit differences of every window and mean."""

    def run():
        z = network.normalise(x)
        for _, layer in network.named_layers():
            if not isinstance(layer, MixtureLayer):
                z = layer(z)
                continue
            patches = unfold(z, layer.kernel, layer.stride)[:, :, None]  # (P, N, 1, D)
            roots = layer.emission.root_precisions[:, None]  # (P or 1, 1, K, D)
            whitened = (patches - layer.emission.means[:, None]) * roots  # (P, N, K, D)
            scores = (roots.log() - whitened.square() / 2).sum(3)  # (P, N, K)
            scores.amax(2).mean().backward()
            scores = scores.detach().permute(1, 2, 0).unflatten(2, layer.output_shape[1:])
            z = scores.softmax(1)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stacks", nargs="*", default=list(STACKS), choices=list(STACKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-materialised", action="store_true")
    options = parser.parse_args()
    for stack in options.stacks:
        network = build(name_layers(STACKS[stack]()), (1, 28, 28), joint=False)
        network.initialise(torch.zeros(1, 1, 28, 28), torch.Generator().manual_seed(0))
        network.to(options.device)
        x = torch.rand(BATCH_SIZE, 1, 28, 28, device=options.device)
        objective = Layerwise(network, n_steps=0)  # all layers from the first step on
        routes = {
            "step": lambda o=objective, x=x: o.step(Batch(x)),
            "products": bare_products(network, options.device),
        }
        if not options.skip_materialised:
            routes["materialised"] = materialised(network, x)
        for route in routes.values():
            route()
        times = {name: [] for name in routes}
        for _ in range(options.repeats):
            for name, route in routes.items():
                times[name].append(_milliseconds(route, options.device))
        medians = {name: statistics.median(values) for name, values in times.items()}
        row = {"stack": stack, **{f"{name}_ms": round(t, 2) for name, t in medians.items()}}
        row["step_per_products"] = round(medians["step"] / medians["products"], 2)
        if "materialised" in medians:
            row["step_per_materialised"] = round(medians["step"] / medians["materialised"], 4)
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps({**row, **machine, "machine": platform.machine()}), flush=True)


def _milliseconds(route, device):
    start = time.perf_counter()
    for _ in range(N_CALLS):
        route()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / N_CALLS * 1e3


if __name__ == "__main__":
    main()
