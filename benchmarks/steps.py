"""Training steps and scores of stacks, the matrix products they must do, and their times."""

import statistics
import time

import numpy as np
import torch

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.data import Batch
from skdcgmm.model.specs import auto
from skdcgmm.model.stack import Tables
from skdcgmm.training.joint import Joint, log_prob

BATCH_SIZE = 250
N_IMAGES = 60_000  # that "auto" plans for
N_START = 1000
N_LONG = 10**6  # steps of a training that has hardly begun
SECONDS = 0.3  # of one timing, at least
# By name, the kind of pixels of "auto"; or the layers.
STACKS = {
    "flat 49": [ConvGMM(49)],
    "tiles of 4, top 100": [ConvGMM(25, 4, shared=False), ConvGMM(100)],
    "auto, tiles": "tiles",
    "auto, atoms": "atoms",
    "auto, pyramid": "pyramid",
}


def estimator(name, image_shape, seed=0):
    """An estimator whose stack is one of those above, for as many images as "auto" plans for."""
    layers, pixels = STACKS[name], "tiles"
    if isinstance(layers, str):
        layers, pixels = planned(layers, image_shape), layers
    return DCGMMEstimator(
        layers=layers, pixels=pixels, image_shape=image_shape, random_state=seed, device="cpu"
    )


def planned(pixels, image_shape):
    height, width, channels = (*image_shape, 1)[:3]
    return auto((channels, height, width), N_IMAGES, pixels=pixels)


def started(est, X, device="cpu", batch_size=BATCH_SIZE):
    """The stack of an estimator after hardly any training, and a batch of images."""
    stack = est.set_params(max_epochs=1).fit(X[:N_START])._stack
    height, width, channels = est.image_shape_
    images = X[:batch_size].reshape(-1, height, width, channels)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return stack.to(device), x.to(device)


def step(stack, x):
    objective, batch = Joint(stack, N_LONG), Batch(x, complete=True)
    return lambda: objective.step(batch)


def gradients(stack, x, function=log_prob):
    """Forward and backward of a step, without its optimizer."""
    batch = Batch(x, complete=True)

    def run():
        stack.zero_grad()
        function(stack(), batch).sum().backward()

    return run


def score(stack, x):
    """What prediction does for these images once the density is made."""
    with torch.no_grad():
        density = stack()

    def run():
        with torch.no_grad():
            return log_prob(density, Batch(x, complete=True))

    return run


def shapes(stack, n_images):
    """Of the products of a score: positions, rows, values in, components out; and learnt inputs."""
    for name, layer in stack.mixtures.items():
        emission, windows = stack.emission(name), layer.windows
        if isinstance(emission, Tables):
            n_above, n_below = emission.logits.shape[-2:]
            yield int(np.prod(emission.size)), n_images, n_below, n_above, True
            emission = stack.gaussians.get(name)
        if emission is not None:
            n_mixtures, n_components, n_values = emission.means.shape
            n_rows = n_images * windows.n_windows // n_mixtures
            n_features = 5 if stack.kind == "atoms" else 2  # of a value, such as x and x^2
            yield n_mixtures, n_rows, n_features * n_values, n_components, False


def products(stack, x, *, gradients):
    """The bare products of scores, and those of their gradients, on ready operands."""
    operands = []
    for n_mixtures, n_rows, n_in, n_out, learns_inputs in shapes(stack, len(x)):
        inputs = torch.rand(n_mixtures, n_rows, n_in, device=x.device)
        parameters = torch.rand(n_mixtures, n_out, n_in, device=x.device)
        back = torch.rand(n_mixtures, n_rows, n_out, device=x.device)
        operands.append((inputs, parameters, back, learns_inputs))

    def run():
        for inputs, parameters, back, learns_inputs in operands:
            torch.bmm(inputs, parameters.mT)
            if gradients:
                torch.bmm(back.mT, inputs)
                if learns_inputs:
                    torch.bmm(back, parameters)

    return run


def n_operations(stack, n_images, *, gradients):
    """Floating-point operations of these products."""
    return sum(
        2 * n_mixtures * n_rows * n_in * n_out * (1 + gradients * (1 + learns_inputs))
        for n_mixtures, n_rows, n_in, n_out, learns_inputs in shapes(stack, n_images)
    )


def medians(routes, device, n_repeats=5):
    """Milliseconds of a call of each route; they take turns."""
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
    synchronize(device)
    start = time.perf_counter()
    for _ in range(n_calls):
        route()
    synchronize(device)
    return (time.perf_counter() - start) / n_calls


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
