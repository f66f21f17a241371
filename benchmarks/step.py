"""Time and memory of a training step, beside the matrix products it must do.

    python -m benchmarks.step

JSON lines for stacks of 28 x 28 images; times are medians over the repeats, in milliseconds:

- `step`: of the joint or of the layer-wise objective, the latter while it anneals and after;
- `products`: the bare matrix products of its scores and their gradients, of the same shapes. The
  average over neighbours while a layer anneals is not among them;
- `score`: what prediction takes for as many images;
- `materialised`, for the layer-wise objective: the same gradients through the
  N x H x W x K x D tensor of differences.

They take turns within each repeat. Every row is measured in a process of its own, of which
`step_mib` is what its first steps add to the peak memory; all that was there before, libraries,
network and images among it, does not count.
"""

import argparse
import functools
import json
import multiprocessing
import platform
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from skdcgmm import ConvGMM
from skdcgmm._batch import Batch
from skdcgmm._build import build
from skdcgmm._composition import name_layers
from skdcgmm._joint import Joint
from skdcgmm._layerwise import Layerwise
from skdcgmm._presets import PRESETS, auto, preset
from skdcgmm._training import keep_memory
from skdcgmm._windows import unfold
from skdcgmm.layers import CategoricalEmission, MixtureLayer

IMAGE_SHAPE = (1, 28, 28)
LAYERWISE = {
    **{name: functools.partial(preset, name, IMAGE_SHAPE) for name in PRESETS},
    "dcgmm-b, lower layer unshared": lambda: [ConvGMM(49, 8, 2, shared=False), ConvGMM(49)],
}
# By name, the layers and the size of a batch.
JOINT = {
    "tiles of 4, top 100": (lambda: [ConvGMM(25, 4, shared=False), ConvGMM(100)], 500),
    "flat 49": (lambda: [ConvGMM(49)], 500),
    "auto": (lambda: auto(IMAGE_SHAPE, 60_000), 250),
}
LAYERWISE_BATCH_SIZE = 100
# Objective, stack, and whether layers have annealed, of each row.
ROWS = [
    *[("joint", stack, None) for stack in JOINT],
    *[("layerwise", stack, annealed) for stack in LAYERWISE for annealed in (False, True)],
]
N_LONG = 10**6  # steps of a training that has hardly begun
MEMORY_STEPS = 3
SECONDS = 0.3  # of one timing, at least


def joint_step(network, x):
    objective, batch = Joint(network, N_LONG), Batch(x, complete=True)
    return lambda: objective.step(batch)


def layerwise_step(network, x, annealed):
    """All layers learn from the first step on."""
    objective, batch = Layerwise(network, N_LONG), Batch(x, complete=True)
    for training in objective._trainings.values():
        training.first_step = 0
        if annealed:
            radius = training.schedule.final_radius
            training.state = training.state._replace(radius=radius)
    return lambda: objective.step(batch)


def bare_products(network, x):
    """The products of scores and of their gradients, on ready operands."""
    operands = []
    for layer in network.mixtures.values():
        if isinstance(layer.emission, CategoricalEmission):
            n_above, n_below = layer.emission.logits.shape[-2:]
            n_cells = layer.input_shape[1] * layer.input_shape[2]
            shape, rows = (n_cells, n_above, n_below), len(x)
        else:
            n_mixtures, n_components, n_values = layer.emission.means.shape
            shape = n_mixtures, n_components, 2 * n_values  # of (x, x^2)
            rows = len(x) * layer.output_shape[1] * layer.output_shape[2] // n_mixtures
        parameters = torch.rand(shape, device=x.device)
        inputs = torch.rand(shape[0], rows, shape[2], device=x.device)
        gradient = torch.rand(shape[0], rows, shape[1], device=x.device)
        learns_inputs = isinstance(layer.emission, CategoricalEmission)
        operands.append((inputs, parameters, gradient, learns_inputs))

    def run():
        for inputs, parameters, gradient, learns_inputs in operands:
            torch.bmm(inputs, parameters.mT)
            torch.bmm(gradient.mT, inputs)
            if learns_inputs:
                torch.bmm(gradient, parameters)

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


def score(network, x):
    def run():
        with torch.no_grad():
            network.scores(x)

    return run


def measure(objective, stack, annealed, options):
    """One row, as a dictionary."""
    joint = objective == "joint"
    make, batch_size = JOINT[stack] if joint else (LAYERWISE[stack], LAYERWISE_BATCH_SIZE)
    network = build(name_layers(make()), IMAGE_SHAPE, joint=joint)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(max(batch_size, 500), *IMAGE_SHAPE, generator=generator)
    network.first.gaussian.set_min_variance(torch.tensor(0.05))
    network.initialise(x, generator)
    network.to(options.device)
    x = x[:batch_size].to(options.device)
    step = joint_step(network, x) if joint else layerwise_step(network, x, annealed)
    keep_memory()
    before = peak_mib()
    for _ in range(MEMORY_STEPS):
        step()
    memory = {"step_mib": round(peak_mib() - before, 1)}
    row = {"objective": objective, "stack": stack, "batch_size": batch_size}
    row |= {} if joint else {"annealed": annealed}
    routes = {"step": step, "products": bare_products(network, x), "score": score(network, x)}
    if not joint and not options.skip_materialised:
        routes["materialised"] = materialised(network, x)
    times = medians(routes, options.repeats, x.device)
    row |= {f"{name}_ms": round(t, 2) for name, t in times.items()} | memory
    row["step_per_products"] = round(times["step"] / times["products"], 2)
    if "materialised" in times:
        row["step_per_materialised"] = round(times["step"] / times["materialised"], 4)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return {**row, **machine, "machine": platform.machine()}


def peak_mib():
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def medians(routes, n_repeats, device):
    """Milliseconds of a call of each route."""
    # As many calls in a timing as make it long enough; the first ones also warm up.
    calls = {}
    for name, route in routes.items():
        seconds(route, 2, device)
        calls[name] = max(1, round(SECONDS / seconds(route, 1, device)))
    times = {name: [] for name in routes}
    for _ in range(n_repeats):
        for name, route in routes.items():
            times[name].append(seconds(route, calls[name], device) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(route, n_calls, device):
    start = time.perf_counter()
    for _ in range(n_calls):
        route()
    if device.type != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / n_calls


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    stacks = [*JOINT, *LAYERWISE]
    parser.add_argument("--stacks", nargs="*", default=stacks, choices=stacks)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-materialised", action="store_true")
    options = parser.parse_args()
    for objective, stack, annealed in ROWS:
        if stack in options.stacks:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, objective, stack, annealed, options).result()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
