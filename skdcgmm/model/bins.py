"""Probabilities of rounded values: of images of whole numbers, as all that a density means by them.

Each level stands for the values that round to it, the lowest and the highest for all beyond.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from skdcgmm.model.windows import Windows

# Log probability of levels so improbable that double precision knows nothing of them.
_LEAST_LOG = -1e5


def log_bins(levels: Tensor, means: Tensor, root_precisions: Tensor) -> Tensor:
    """Log probability that a Gaussian value rounds to a level.

    Parameters
    ----------
    levels : Tensor of shape (V,)
        Rising.
    means, root_precisions : Tensor of shape (P, K, D)
        In the units of the levels.

    Returns
    -------
    Tensor of shape (P, K, D, V)
        The probabilities sum to 1.
    """
    middles = (levels[1:] + levels[:-1]) / 2  # (V - 1,)
    lower = functional.pad(middles, (1, 0), value=-math.inf)  # (V,)
    upper = functional.pad(middles, (0, 1), value=math.inf)  # (V,)
    lower = (lower - means[..., None]) * root_precisions[..., None]  # (P, K, D, V)
    upper = (upper - means[..., None]) * root_precisions[..., None]  # (P, K, D, V)
    # In the lower tail, where small probabilities are precise.
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    ratio = (torch.special.log_ndtr(lower) - log_upper).exp_()
    logs: Tensor = log_upper + torch.log1p(-ratio)
    return logs.nan_to_num(nan=_LEAST_LOG).clamp_min(_LEAST_LOG)


def look_up(log_bins: Tensor, codes: Tensor, windows: Windows) -> Tensor:
    """Log probability of windows of levels by component, (N, K, rows, columns).

    Parameters
    ----------
    log_bins : Tensor of shape (P, D, V + 1, K)
        By the code of a level; the first code is that of missing values.
    codes : Tensor of int of shape (N, C, H, W)
    windows : Windows
    """
    n_mixtures, n_values, n_codes, _ = log_bins.shape
    by_window = windows.unfold(codes)  # (R, N, D)
    mixture = torch.arange(len(by_window), device=codes.device) % n_mixtures  # (R,)
    value = torch.arange(n_values, device=codes.device)  # (D,)
    first = (mixture[:, None] * n_values + value) * n_codes  # (R, D)
    index = (by_window + first[:, None]).flatten(0, 1)  # (R * N, D)
    sums = functional.embedding_bag(index, log_bins.flatten(0, 2), mode="sum")  # (R * N, K)
    return sums.view(*windows.grid, -1, sums.shape[1]).permute(2, 3, 0, 1)
