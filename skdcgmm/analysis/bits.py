"""Images of whole numbers: the step between their values, and noise as for densities."""

from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

# What rounding may change of a whole number.
_ROUNDING = 1e-3


def level_step(rows: NDArray[Any], n_levels: int) -> float:
    """Difference between neighbouring values of images of `n_levels` values from 0 upwards.

    It is 1, or that of the range 0-1 for floating-point values of which none is above 1.

    Raises
    ------
    ValueError
        If other values are found.
    """
    observed = rows[~np.isnan(rows)]
    low, high = observed.min(initial=0), observed.max(initial=0)
    step = 1 / (n_levels - 1) if rows.dtype.kind == "f" and high <= 1 else 1.0
    levels = observed / step
    off = np.abs(levels - np.round(levels)).max(initial=0)
    if low < 0 or round(float(high) / step) >= n_levels or off > _ROUNDING:
        raise ValueError(
            f"X must hold whole numbers from 0 to {n_levels - 1} for bits, or these divided by "
            f"{n_levels - 1}; got values from {low:.6g} to {high:.6g}, {off:.3g} of a step away "
            "from such. Give the images as they were stored, or another n_levels."
        )
    return step


def dequantise(
    rows: NDArray[Any], step: float, rng: RandomState, where: NDArray[np.bool_]
) -> NDArray[Any]:
    """Values, where they are to be changed, with uniform noise of one step added.

    Minus the log density of what results is, on average, no less than that of the values'
    probability over the step.

    References
    ----------
    L. Theis, A. van den Oord, M. Bethge: A note on the evaluation of generative models. ICLR 2016.
    """
    noise = step * rng.uniform(-0.5, 0.5, rows.shape)
    noisy: NDArray[Any] = np.where(where, rows + noise, rows)
    return noisy.astype(rows.dtype if rows.dtype.kind == "f" else np.float32)
