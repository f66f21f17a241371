"""Who watches a training: the progress bar, scikit-learn's callbacks, and the checkpoint."""

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.random import RandomState
from torch import nn
from tqdm.auto import tqdm

from skdcgmm import files
from skdcgmm.model.stack import BaseStack
from skdcgmm.model.tree import n_active
from skdcgmm.training import HistoryRow, Objective, Standing, ranks

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
    from sklearn.callback import with_callbacks as with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks."""

    def with_callbacks(method: Any) -> Any:
        """Leave a method as it is."""
        return method


HAS_CALLBACKS = hasattr(CallbackSupportMixin, "set_callbacks")


class Report:
    """Tells a progress bar and the callbacks of an estimator how its training is getting on.

    Parameters
    ----------
    estimator : BaseDCGMM
    stack : BaseStack
        That is trained.
    shown : dict or None
        What the callbacks are to see as the training data; None calls none.
    ended : callable
        From the history to the attributes of an estimator as if training ended now.
    n_epochs : int
        Of the training.
    history : list of dict
        Of the epochs that are done.
    """

    def __init__(
        self,
        estimator: Any,
        stack: BaseStack,
        shown: dict[str, Any] | None,
        ended: Callable[[list[HistoryRow]], dict[str, Any]],
        n_epochs: int,
        history: list[HistoryRow],
    ) -> None:
        self._stack, self._ended, self._history = stack, ended, list(history)
        self._shown = {"estimator": estimator, **(shown or {})}
        self._with_callbacks = shown is not None and HAS_CALLBACKS
        if self._with_callbacks:
            n_left = n_epochs - len(history)
            self._context = estimator._init_callback_context(max_subtasks=n_left)
            self._context.call_on_fit_task_begin(**self._shown)
        self._bar = tqdm(
            desc=type(estimator).__name__, total=n_epochs, initial=len(history), unit="epoch",
            disable=not estimator.verbose,
        )  # fmt: skip

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

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
            weights = self._stack.top_weights
            figures["active"] = f"{n_active(weights):.0f}/{len(weights)}"
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update()
        if not self._with_callbacks:
            return False
        stop = self._epoch.call_on_fit_task_end(
            **self._shown,
            reconstruction_attributes=lambda: self._ended(self._history),
        )
        return any(ranks.gather(bool(stop)))

    def end(self) -> None:
        """The estimator is fitted."""
        if self._with_callbacks:
            self._context.call_on_fit_task_end(**self._shown, reconstruction_attributes=dict)


class Checkpoint:
    """A file of what a training has reached, written from time to time, to go on from.

    Of several processes the first one writes the file, and tells the others what it has read. It
    has the format of saved estimators (`skdcgmm.files`) and holds

    - "settings": the parameters of the estimator, as text, and "data": what tells its images from
      others; a training with others does not go on from the file;
    - "stack": the arrays of its stack, which is built from the parameters;
    - "progress": where the objective stands, with the optimizer's state;
    - "standing": how far the epochs have got, with their history and the best parameters;
    - "start", "epoch": random states at the start of the training, and of the epoch by process.

    Parameters
    ----------
    path : str or path-like, or None
        None keeps nothing.
    minutes : float
        Time between two writings.
    parameters : dict of str to str
        Of the training; a file of another one is refused.
    rng : RandomState
        At the start of the training.
    classes : dict of str to type
        Of objects in the file, other than plain values and arrays.

    Attributes
    ----------
    rng : RandomState
        As at the start of the earlier training that goes on, or as given.

    Raises
    ------
    ValueError
        If the file cannot be read, or is of a training with other parameters.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        minutes: float = 0.0,
        parameters: dict[str, str] | None = None,
        *,
        rng: RandomState,
        classes: dict[str, type] | None = None,
    ) -> None:
        self._path = None if path is None else Path(os.path.realpath(path))
        self._seconds, self._classes = 60 * minutes, classes or {}
        self._written = time.monotonic()
        self._saved: dict[str, Any] | None = ranks.of_first(self._load())
        if self._saved is not None:
            for name, value in (parameters or {}).items():
                self._check(name, self._saved["settings"].get(name), value)
            rng = self._saved["start"]
        self.rng = rng
        self._origin: dict[str, Any] = {"settings": parameters, "start": copy.deepcopy(rng)}
        self._epoch: list[RandomState] = []

    def _load(self) -> dict[str, Any] | None:
        if self._path is None or not self._path.exists():
            return None
        try:
            return files.read(self._path, "checkpoint", self._classes)
        except ValueError as error:
            raise ValueError(
                f"checkpoint={str(self._path)!r} cannot be read ({error}). Delete the file, or "
                "give another path."
            ) from error

    def _check(self, name: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise ValueError(
                f"checkpoint={str(self._path)!r} is of another training: its {name} is {found}, "
                f"not {expected}. Delete the file, or give another path."
            )

    def check_images(self, images: str) -> None:
        """Compare what tells the images of this training with those of the earlier one.

        Raises
        ------
        ValueError
            If they differ.
        """
        self._origin["data"] = images
        if self._saved is not None:
            self._check("X", self._saved["data"], images)

    def restore(self, stack: nn.Module, rng: RandomState) -> tuple[Any, Standing] | None:
        """Put a stack and a generator where the earlier training left them; and its progress."""
        if self._saved is None:
            return None
        stack.load_state_dict(files.tensors_of(self._saved["stack"]))
        rng.set_state(self._saved["epoch"][ranks.rank()].get_state(legacy=False))
        standing: Standing = files.tensors_of(self._saved["standing"])
        best = [value.to(next(stack.parameters())) for value in standing.best_parameters]
        return files.tensors_of(self._saved["progress"]), standing._replace(best_parameters=best)

    def start_epoch(self, rng: RandomState) -> None:
        """Note how the order of the images is drawn."""
        if self._path is not None:
            self._epoch = ranks.gather(copy.deepcopy(rng))

    def note(self, stack: nn.Module, objective: Objective, standing: Standing) -> None:
        """Write what the training has reached, if it is time."""
        if self._path is None or time.monotonic() - self._written < self._seconds:
            return
        if ranks.rank() == 0:
            reached = {
                "stack": dict(stack.state_dict()),
                "progress": objective.progress,
                "standing": standing,
            }
            state = {**files.arrays_of(reached), **self._origin, "epoch": self._epoch}
            files.write(self._path, "checkpoint", state, self._classes)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the training is done."""
        if self._path is not None and ranks.rank() == 0:
            self._path.unlink(missing_ok=True)
