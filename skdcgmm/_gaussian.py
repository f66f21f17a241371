"""Gaussians with diagonal precisions, as pure functions of tensors.

Means are (P, K, D): P positions (one if shared), K components, D values in a window, ordered
(channel, row, column). Root precisions, the inverse standard deviations, are (P, K, D), or
(P, K, 1) for spherical Gaussians.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from skdcgmm._windows import Size, grid_size, images_last, overhang, pad, unfold

LOG_2PI = math.log(2 * math.pi)

# Of a sum of products: weights (P, K, D or 1), and what they weigh.
Terms = list[tuple[Tensor, Tensor]]


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Leave inference mode, whose tensors no gradient may pass ever after."""
    with_gradients = torch.is_grad_enabled()  # which leaving inference mode would switch on
    with torch.inference_mode(False), torch.set_grad_enabled(with_gradients):
        yield


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Compute exactly and reproducibly while in this context, whatever modes the caller is in.

    The expanded square does not survive the ten bits of TF32, nor those of bfloat16.
    """
    with ExitStack() as stack:
        stack.enter_context(ordinary_tensors())
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_exact)
        if device.type == "cuda":
            stack.enter_context(_deterministic)
        yield


class _ProcessWide:
    """Settings of the whole process, made by the first thread to enter, unmade by the last out.

    Parameters
    ----------
    settings : list of (object, str, object)
        Owner, name and value of each. What they were is read once those before are made.
    """

    def __init__(self, settings: list[tuple[Any, str, Any]]) -> None:
        self._settings = settings
        self._before: list[Any] = []
        self._n_inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._before = []
                try:
                    for owner, name, value in self._settings:
                        before = getattr(owner, name)
                        setattr(owner, name, value)
                        self._before.append(before)
                except BaseException:
                    self._restore()
                    raise
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._restore()

    def _restore(self) -> None:
        for (owner, name, _), value in zip(self._settings, self._before, strict=False):
            setattr(owner, name, value)


class _Legacy:
    """The precision of products where torch has but one, before 2.9."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _exactness() -> list[tuple[Any, str, Any]]:
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    if not hasattr(cuda, "fp32_precision"):
        return [(_Legacy(), "precision", "highest"), (cudnn, "allow_tf32", False)]
    # Once the general settings are away, the particular ones show what is their own.
    general, particular = (backends, cudnn), (cuda, cudnn.conv, mkldnn.matmul, mkldnn.conv)
    return [(owner, "fp32_precision", "none") for owner in general] + [
        (owner, "fp32_precision", "ieee") for owner in particular
    ]


_exact = _ProcessWide(_exactness())
_deterministic = _ProcessWide(
    [(torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False)]
)


def log_prob(
    x: Tensor,
    means: Tensor,
    root_precisions: Tensor,
    kernel: Size,
    stride: Size,
    complete: bool = False,
) -> Tensor:
    """Log density of every window of `x` under every component.

    The square is expanded, so that a score is linear in (x, x^2): one convolution where
    positions share their Gaussians, else one batched matrix product over positions. No
    difference x - mean is materialised.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)
        Missing values are NaN: their terms are dropped, which marginalises them.
    means : Tensor of shape (P, K, D)
    root_precisions : Tensor of shape (P, K, D) or (P, K, 1)
    kernel, stride : (height, width)
    complete : bool
        Promise that no value is missing, which spares a look at all of them.

    Returns
    -------
    Tensor of shape (N, K, rows, columns)
        Images come last in memory: what follows works on the components of many at once.
    """
    size = (x.shape[2], x.shape[3])
    rows, columns = grid_size(size, kernel, stride)
    missing = None if complete else x.isnan()  # (N, C, H, W)
    if missing is not None and not missing.any():
        missing = None
    full = missing is None and overhang(size, kernel, stride) == (0, 0)
    natural: Callable[..., tuple[Tensor, Tensor, Tensor]] = _NaturalParameters.apply
    linear, quadratic, constant = natural(means, root_precisions, full)
    if missing is not None:
        # Each value brings its own constant, and a missing one brings none.
        x = torch.where(missing, 0, x)
        bias = torch.zeros_like(constant[..., :1])  # (P, K, 1)
    elif full:
        bias = constant  # (P, K, 1)
    else:
        bias = _window_constants(constant, size, kernel, stride)  # (P or rows * columns, K, 1)
    overlapping = stride[0] < kernel[0] or stride[1] < kernel[1]
    if len(means) == 1 and overlapping and rows * columns > 1:
        terms = [(linear, x), (quadratic, x.square())]
        terms += [] if missing is None else [(constant, (~missing).to(x))]
        return _convolved(terms, bias, kernel, stride)
    windows = unfold(x, kernel, stride)  # (rows * columns, N, D)
    terms = [(linear, windows), (quadratic, windows.square())]
    terms += [] if missing is None else [(constant, unfold((~missing).to(x), kernel, stride))]
    scores = _multiplied(terms, bias)  # (rows * columns, K, N)
    return scores.view(rows, columns, *scores.shape[1:]).permute(3, 2, 0, 1)


class _NaturalParameters(torch.autograd.Function):
    """Weights of (x, x^2) in the log density, and its constant by value or summed over values.

    They are (P, K, D), (P, K, D or 1), and (P, K, D) or (P, K, 1). Where mixtures are not shared
    there are as many parameters as values in a batch: a tape would take thrice the passes.
    """

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, roots: Tensor, summed: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        zero = means.new_zeros(())
        quadratic = torch.addcmul(zero, roots, roots, value=-0.5)  # (P, K, D or 1)
        linear = torch.addcmul(zero, quadratic, means, value=-2)  # (P, K, D)
        constant = linear * means  # (P, K, D)
        if summed:
            n_each = means.shape[2] // roots.shape[2]
            constant = constant.sum(2, keepdim=True)  # (P, K, 1)
            logs = n_each * _sum_of_logs(roots)  # (P, K, 1)
            constant.add_(means.shape[2] * LOG_2PI)
        else:
            logs = roots.log()  # (P, K, D or 1)
            constant.add_(LOG_2PI)
        ctx.save_for_backward(means, roots, quadratic)
        return linear, quadratic, torch.sub(logs, constant, alpha=0.5)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, linear: Tensor, quadratic: Tensor, constant: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        # The gradients are, over what is seen, the sums of x, x^2 and 1, weighed.
        means, roots, halves = ctx.saved_tensors  # halves: of the precisions, negative
        centred = torch.addcmul(linear, constant, means, value=-1)  # (P, K, D)
        second = (linear + centred).mul_(means)  # (P, K, D)
        if roots.shape[2] < means.shape[2]:
            second = second.sum(2, keepdim=True)  # (P, K, 1)
            constant = constant.expand_as(means).sum(2, keepdim=True)  # (P, K, 1)
        torch.sub(quadratic, second, out=second)
        to_roots = torch.addcmul(constant, halves, second, value=2).div_(roots)
        to_means = torch.addcmul(means.new_zeros(()), halves, centred, value=-2)  # (P, K, D)
        return to_means, to_roots, None


def _sum_of_logs(x: Tensor) -> Tensor:
    """Sum of the logarithms over the last axis (P, K, D) of numbers near 1, (P, K, 1).

    A logarithm costs as much as many products: it is taken of four factors at once.
    """
    quarter = x.shape[2] // 4
    a, b, c, d = x[..., : 4 * quarter].chunk(4, 2)
    logs = (a * b).mul_(c).mul_(d).log_().sum(2, keepdim=True)  # (P, K, 1)
    return logs.add_(x[..., 4 * quarter :].log().sum(2, keepdim=True))


def _window_constants(constant: Tensor, size: Size, kernel: Size, stride: Size) -> Tensor:
    """Sum the constants (P, K, D) of the values inside the border, (rows * columns, K, 1)."""
    inside = constant.new_ones(1, 1, *size)  # (1, 1, H, W)
    seen = unfold(inside, kernel, stride).mT  # (rows * columns, h * w, 1)
    by_pixel = constant.view(*constant.shape[:2], -1, seen.shape[1]).sum(2)  # (P, K, h * w)
    return by_pixel @ seen


def _convolved(terms: Terms, bias: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Scores of shared components, of images (N, C, H, W): one convolution of all terms."""
    inputs, weights = [], []
    for weight, x in terms:
        if weight.shape[2] == 1 < x.shape[1] * kernel[0] * kernel[1]:  # spherical
            x, weight = x.sum(1, keepdim=True), weight.expand(-1, -1, kernel[0] * kernel[1])
        inputs.append(pad(x, kernel, stride))
        weights.append(weight.view(weight.shape[1], x.shape[1], *kernel))
    features = torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last)
    weight = torch.cat(weights, 1)  # (K, channels of the features, h, w)
    shared = bias[0, :, 0] if len(bias) == 1 else None
    scores = functional.conv2d(features, weight, shared, stride)  # (N, K, rows, columns)
    scores = images_last(scores.movedim(1, 3)).movedim(3, 1)
    if shared is not None:
        return scores
    return scores + bias.mT.reshape(*scores.shape[2:], -1).movedim(-1, 0)


def _multiplied(terms: Terms, bias: Tensor) -> Tensor:
    """Scores by position, (R, K, N), of windows (R, N, D): one batched product for each term."""
    factors = []
    for weight, x in terms:
        if weight.shape[2] == 1 < x.shape[2]:  # spherical
            x = x.sum(2, keepdim=True)  # (R, N, 1)
        factors.append((weight.expand(len(x), -1, -1), x.mT))
    scores = torch.baddbmm(bias, *factors[0])  # (R, K, N)
    for weight, x in factors[1:]:
        scores.baddbmm_(weight, x)
    return scores


def sample(
    means: Tensor,
    root_precisions: Tensor,
    components: Tensor,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw one window from the given component of each position.

    Parameters
    ----------
    means : Tensor of shape (P, K, D)
    root_precisions : Tensor of shape (P, K, D) or (P, K, 1)
    components : Tensor of shape (rows * columns, N)
        Component indices.
    temperature : float
        Factor of the variances; 0 gives the means.
    generator : torch.Generator or None
        On the device of the parameters.

    Returns
    -------
    Tensor of shape (rows * columns, N, D)
    """
    position = torch.arange(len(components), device=components.device) % len(means)
    chosen = means[position[:, None], components]  # (rows * columns, N, D)
    if temperature == 0:
        return chosen
    noise = torch.randn(chosen.shape, generator=generator, dtype=chosen.dtype, device=chosen.device)
    deviations = math.sqrt(temperature) / root_precisions[position[:, None], components]
    return chosen + deviations * noise
