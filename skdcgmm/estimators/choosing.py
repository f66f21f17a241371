"""The kind of pixels that describes held-out images best, by short trainings on some images."""

import math
from collections.abc import Iterable
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState

from skdcgmm.data import Data, Images, make_generator
from skdcgmm.estimators import planning
from skdcgmm.model import computing, specs
from skdcgmm.model.pixels import find_steps
from skdcgmm.model.stack import BaseStack, Stack
from skdcgmm.training import ranks

# Images of a comparison, the share of them that is held out, and steps of a training.
_N_IMAGES, _HELD_OUT = 1000, 0.25
_N_STEPS, _STEP_IMAGES = 60, 100
# Number of images below which nothing is compared.
_MIN_COMPARED = 100


def choose_pixels(
    estimator: Any, kinds: tuple[str, ...], data: Data, device: torch.device, rng: RandomState
) -> tuple[str, dict[str, float]]:
    """The kind of pixels with the fewest held-out bits, and these; that of a warm start stays.

    Parameters
    ----------
    estimator : DCGMMEstimator
    kinds : tuple of str
        Of which the last is for few images.
    data, device, rng
        As for `held_out_bits`.
    """
    if estimator.warm_start and hasattr(estimator, "_stack"):
        earlier: BaseStack = estimator._stack
        if earlier.image_shape == data.shape and earlier.kind in kinds:
            return earlier.kind, {}
    if len(kinds) == 1 or ranks.total(len(data)) < _MIN_COMPARED:
        return kinds[-1], {}
    bits = held_out_bits(kinds, data, device, rng)
    return min(bits, key=bits.__getitem__), bits


def held_out_bits(
    kinds: Iterable[str], data: Data, device: torch.device, rng: RandomState
) -> dict[str, float]:
    """Bits a value of held-out images, by kind of pixels, after a short training of a small stack.

    Parameters
    ----------
    kinds : iterable of str
    data : Images or Stream
    device : torch.device
        Where to train.
    rng : RandomState

    Returns
    -------
    dict of str to float
        Where images have steps between their values, of those; else only differences count.
    """
    some = data.sample(_N_IMAGES, rng)
    n_held_out = max(1, round(_HELD_OUT * len(some)))
    order = np.arange(len(some))
    held_out, kept = some.take(order[:n_held_out]), some.take(order[n_held_out:])
    seed = rng.randint(np.iinfo(np.int32).max)
    bits = {kind: _bits(kind, kept, held_out, device, RandomState(seed)) for kind in kinds}
    return ranks.of_first(bits)


def _bits(
    kind: str, kept: Images, held_out: Images, device: torch.device, rng: RandomState
) -> float:
    layers = specs.lay_out(specs.auto(kept.shape, len(kept), pixels=kind), kept.shape, tiling=True)
    if len(layers) == 1 and kind == "pyramid":
        kind = "tiles"
    stack = Stack(layers, pixels=kind)
    planning.start(stack, kept, None, rng)
    stack.to(device)
    defaults = planning.defaults_of(stack)
    size = min(_STEP_IMAGES, planning.largest_step(stack))
    epochs = kept.epochs(rng, size, stack.like, ranks.total)
    step = find_steps(kept.tensor(slice(None), stack.like))  # (C, 1, 1)
    # A channel that does not vary has the step of others.
    finest = step[step > 0].amin() if (step > 0).any() else torch.ones_like(step[0])
    step = torch.where(step > 0, step, finest)
    with computing(device):
        training = defaults.objective(stack, _N_STEPS, defaults.learning_rate)
        for batch in islice(chain.from_iterable(epochs.batches() for _ in count()), _N_STEPS):
            training.step(batch)
        with torch.no_grad():
            tree, total, n_values = stack(), 0.0, 0
            for part in held_out.in_order(_STEP_IMAGES, stack.like):
                # With noise of a step, a density tells the probability of the values themselves.
                generator = make_generator(rng, device)
                uniform = torch.rand(
                    part.x.shape, generator=generator, dtype=part.x.dtype, device=device
                )
                low, high = stack.ends
                between = (part.x > low) & (part.x < high) | (kind != "atoms")
                x = torch.where(between, part.x + step * (uniform - 0.5), part.x)
                seen = ~part.x.isnan()
                nats = tree.log_prob(x).sum() + (step.log() * (between & seen)).sum()
                total, n_values = total - float(nats), n_values + int(seen.sum())
    return total / max(1, n_values) / math.log(2)
