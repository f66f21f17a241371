"""The density of a stack of mixtures: windows, pixels, tables, and how it is computed.

It is computed in full precision and reproducibly, whatever modes of torch a caller is in.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


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
        stack.enter_context(_exact())
        yield


_backends: Any = torch.backends
# Owner, name and value of settings of the whole process. Once the general ones are away, the
# particular ones show what is their own.
_SETTINGS: list[tuple[Any, str, Any]] = [
    (_backends, "fp32_precision", "none"),
    (_backends.cudnn, "fp32_precision", "none"),
    (_backends.cuda.matmul, "fp32_precision", "ieee"),
    (_backends.cudnn.conv, "fp32_precision", "ieee"),
    (_backends.mkldnn.matmul, "fp32_precision", "ieee"),
    (_backends.mkldnn.conv, "fp32_precision", "ieee"),
    (_backends.cudnn, "deterministic", True),
    (_backends.cudnn, "benchmark", False),
]
_lock = threading.Lock()
_n_inside = 0
_made = ExitStack()


@contextmanager
def _exact() -> Iterator[None]:
    """Settings of the whole process, made by the first thread to enter, unmade by the last out."""
    global _n_inside, _made
    with _lock:
        if _n_inside == 0:
            with ExitStack() as making:  # undone should one of them fail
                for owner, name, value in _SETTINGS:
                    making.callback(setattr, owner, name, getattr(owner, name))
                    setattr(owner, name, value)
                _made = making.pop_all()
        _n_inside += 1
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                _made.close()
