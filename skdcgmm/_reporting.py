"""How a training is getting on: for a terminal, and for scikit-learn's callbacks."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from skdcgmm import _distributed
from skdcgmm._network import Network
from skdcgmm._sklearn_compat import HAS_CALLBACKS
from skdcgmm._summary import n_active
from skdcgmm._training import HistoryRow


class Report:
    """Tells a progress bar and the callbacks of an estimator what happens.

    Parameters
    ----------
    estimator : BaseDCGMM
    network : Network
        That is trained.
    X, y : Any
        What the callbacks are to see as the training data.
    fitted : callable
        From the history, and the numbers of the images held out, to the attributes of an estimator
        as if training ended now.
    with_callbacks : bool
        Whether the estimator's callbacks are called, as by `fit`.
    """

    def __init__(
        self,
        estimator: Any,
        network: Network,
        X: Any,
        y: Any,
        fitted: Callable[[list[HistoryRow], Any], dict[str, Any]],
        *,
        with_callbacks: bool,
    ) -> None:
        self._estimator, self._network, self._fitted = estimator, network, fitted
        self._shown = {"estimator": estimator, "X": X, "y": y}
        self._with_callbacks = with_callbacks and HAS_CALLBACKS
        self._bar = tqdm(disable=True)
        self._history: list[HistoryRow] = []
        self._held_out: Any = None
        self._context: Any = None
        self._epoch: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def start(self, n_epochs: int, history: list[HistoryRow], held_out: Any) -> None:
        """The training is to have so many epochs; those in the history are done."""
        self._history, self._held_out = list(history), held_out
        name = type(self._estimator).__name__
        self._bar = tqdm(
            desc=name, total=n_epochs, initial=len(history), unit="epoch",
            disable=not self._estimator.verbose,
        )  # fmt: skip
        if self._with_callbacks:
            self._context = self._estimator._init_callback_context(
                max_subtasks=n_epochs - len(history)
            )
            self._context.call_on_fit_task_begin(**self._shown)

    def begin_epoch(self) -> None:
        """An epoch begins."""
        if self._with_callbacks:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._shown)

    def end_epoch(self, row: HistoryRow) -> bool:
        """An epoch is done; whether a callback says that training is to end."""
        self._history.append(row)
        if not self._bar.disable:
            figures = {"log-likelihood": f"{row['loss']:.4g}"}
            if "validation_loss" in row:
                figures["held out"] = f"{row['validation_loss']:.4g}"
            top = list(self._network.mixtures)[-1]
            active = n_active(self._network, top)
            figures["active"] = f"{active:.0f}/{self._network.top.n_components}"
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update()
        if not self._with_callbacks:
            return False
        stop = self._epoch.call_on_fit_task_end(
            **self._shown,
            reconstruction_attributes=lambda: self._fitted(self._history, self._held_out),
        )
        return any(_distributed.gather(bool(stop)))

    def end(self) -> None:
        """The estimator is fitted."""
        if self._with_callbacks:
            self._context.call_on_fit_task_end(**self._shown, reconstruction_attributes=dict)
