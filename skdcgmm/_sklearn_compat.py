"""What differs between versions of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

try:
    from sklearn.callback import CallbackSupportMixin
    from sklearn.callback import with_callbacks as _with_callbacks
except ImportError:  # before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks."""

    def _with_callbacks(method: Method) -> Method:
        return method


HAS_CALLBACKS = hasattr(CallbackSupportMixin, "set_callbacks")


def with_callbacks(method: Method) -> Method:
    """Let callbacks clean up after a method, where scikit-learn has callbacks."""
    decorated: Method = _with_callbacks(method)
    return decorated


__all__ = ["HAS_CALLBACKS", "CallbackSupportMixin", "with_callbacks"]
