"""What a step of training learns from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Some images, and what is known of them.

    Attributes
    ----------
    x : Tensor of shape (N, C, H, W)
    weight : Tensor of shape (N,) or None
        Of mean 1 over the images trained on; None weighs all the same.
    y : Tensor of int of shape (N,) or None
        Number of the class of each image, -1 where unknown.
    label_weight : float
        Number of images that a label stands for.
    n_together : int or None
        Number of images of this step in all processes that train together; None is N.
    complete : bool
        Promise that no pixel is missing, which spares a look at all of them.
    """

    x: Tensor
    weight: Tensor | None = None
    y: Tensor | None = None
    label_weight: float = 1.0
    n_together: int | None = None
    complete: bool = False
