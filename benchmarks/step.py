"""Time and memory of a training step, beside the matrix products it must do.

    python -m benchmarks.step

JSON lines for stacks of 28 x 28 images; times are medians over the repeats, in milliseconds:

- `step`: of the joint or of the layer-wise objective, the latter while it anneals and after;
- `products`: the bare matrix products of its scores and their gradients, of the same shapes. The
  average over neighbours while a layer anneals is not among them;
- `score`: what prediction takes for as many images, once the density is made;
- `materialised`, for the layer-wise objective: the same gradients through the
  N x H x W x K x D tensor of differences.

They take turns within each repeat. Every row is measured in a process of its own, of which
`step_mib` is what its first steps add to the peak memory; all that was there before, libraries,
stack and images among it, does not count.
"""

import argparse
import functools
import json
import math
import multiprocessing
import platform
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from skdcgmm import ConvGMM
from skdcgmm.data import Batch
from skdcgmm.model.specs import auto, lay_out, name_layers
from skdcgmm.model.stack import Stack, Tables
from skdcgmm.published import PRESETS, preset
from skdcgmm.published.objective import Layerwise
from skdcgmm.published.stack import LayerwiseStack, _pool
from skdcgmm.training import _keep_memory
from skdcgmm.training.joint import Joint

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


def joint_step(stack, x):
    objective, batch = Joint(stack, N_LONG), Batch(x, complete=True)
    return lambda: objective.step(batch)


def layerwise_step(stack, x, annealed):
    """All layers learn from the first step on."""
    objective, batch = Layerwise(stack, N_LONG), Batch(x, complete=True)
    for training in objective._trainings.values():
        training.first_step = 0
        if annealed:
            radius = training.schedule.final_radius
            training.state = training.state._replace(radius=radius)
    return lambda: objective.step(batch)


def bare_products(stack, x):
    """The products of scores and of their gradients, on ready operands."""
    operands = []
    for name, layer in stack.mixtures.items():
        emission = stack.emission(name)
        learns_inputs = isinstance(emission, Tables)
        if learns_inputs:
            n_above, n_below = emission.logits.shape[-2:]
            shape, rows = (math.prod(emission.size), n_above, n_below), len(x)
        else:
            n_mixtures, n_components, n_values = emission.means.shape
            shape = n_mixtures, n_components, 2 * n_values  # of (x, x^2)
            rows = len(x) * layer.windows.n_windows // n_mixtures
        parameters = torch.rand(shape, device=x.device)
        inputs = torch.rand(shape[0], rows, shape[2], device=x.device)
        gradient = torch.rand(shape[0], rows, shape[1], device=x.device)
        operands.append((inputs, parameters, gradient, learns_inputs))

    def run():
        for inputs, parameters, gradient, learns_inputs in operands:
            torch.bmm(inputs, parameters.mT)
            torch.bmm(gradient.mT, inputs)
            if learns_inputs:
                torch.bmm(gradient, parameters)

    return run


def materialised(stack, x):
    """Gradients of the maximum scores through explicit differences of every window and mean."""

    def run():
        z = x
        for layer in stack.layers:
            if not layer.is_mixture:
                z = _pool(z, layer.windows)
                continue
            emission = stack.emission(layer.name)
            patches = layer.windows.unfold(z)[:, :, None]  # (P, N, 1, D)
            roots = emission.root_precisions[:, None]  # (P or 1, 1, K, D)
            whitened = (patches - emission.means[:, None]) * roots  # (P, N, K, D)
            scores = (roots.log() - whitened.square() / 2).sum(3)  # (P, N, K)
            scores.amax(2).mean().backward()
            scores = scores.detach().permute(1, 2, 0).unflatten(2, layer.windows.grid)
            z = scores.softmax(1)

    return run


def score(stack, x):
    with torch.no_grad():
        density = stack()

    def run():
        with torch.no_grad():
            density.scores(x)

    return run


def measure(objective, name, annealed, options):
    """One row, as a dictionary."""
    joint = objective == "joint"
    make, batch_size = JOINT[name] if joint else (LAYERWISE[name], LAYERWISE_BATCH_SIZE)
    layers = lay_out(name_layers(make()), IMAGE_SHAPE, tiling=joint)
    stack = Stack(layers) if joint else LayerwiseStack(layers)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(max(batch_size, 500), *IMAGE_SHAPE, generator=generator)
    # Images of a variance that leaves their units as they are.
    each = torch.ones(IMAGE_SHAPE)
    stack.pixels.set_units(each, 0 * each, 0.1 * each, 0.05)
    stack.start(x, generator)
    stack.to(options.device)
    x = x[:batch_size].to(options.device)
    step = joint_step(stack, x) if joint else layerwise_step(stack, x, annealed)
    _keep_memory()
    before = peak_mib()
    for _ in range(MEMORY_STEPS):
        step()
    memory = {"step_mib": round(peak_mib() - before, 1)}
    row = {"objective": objective, "stack": name, "batch_size": batch_size}
    row |= {} if joint else {"annealed": annealed}
    routes = {"step": step, "products": bare_products(stack, x), "score": score(stack, x)}
    if not joint and not options.skip_materialised:
        routes["materialised"] = materialised(stack, x)
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
