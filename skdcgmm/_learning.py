"""What the estimators do to learn: check parameters and images, build, train."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils import check_consistent_length, check_random_state, estimator_html_repr

from skdcgmm import _distributed, _fitting, _summary
from skdcgmm._base import BaseDCGMM
from skdcgmm._checkpoint import Checkpoint
from skdcgmm._fitting import Result, Settings
from skdcgmm._gaussian import ordinary_tensors
from skdcgmm._images import Images
from skdcgmm._network import Network
from skdcgmm._reporting import Report
from skdcgmm._sklearn_compat import CallbackSupportMixin, with_callbacks
from skdcgmm._stream import Stream, is_stream
from skdcgmm._training import OBJECTIVES, HistoryRow, Outcome
from skdcgmm._validation import (
    check_batch,
    check_bool,
    check_checkpoint,
    check_choice,
    check_device,
    check_image_shape,
    check_images,
    check_number,
    check_weights,
)
from skdcgmm.layers import Shape

# Parameters that a training does not depend on.
_WITHOUT_EFFECT = (
    "checkpoint", "checkpoint_minutes", "contamination", "device", "score_layer", "score_method",
    "transform_layers", "verbose",
)  # fmt: skip


class LearningDCGMM(CallbackSupportMixin, BaseDCGMM):
    """Checks, building and training."""

    objective: str
    reg_covar: float | None
    max_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    tol: float
    n_iter_no_change: int
    validation_fraction: float | str | None
    warm_start: bool
    verbose: int
    checkpoint: str | os.PathLike[str] | None
    checkpoint_minutes: float

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        before = self.__dict__.copy()
        try:
            with ordinary_tensors():
                yield
        except BaseException:
            self.__dict__ = before
            raise

    def _check_parameters(self) -> None:
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        check_choice("score_method", self.score_method, self._score_methods)
        check_number("n_components", self.n_components, low=1, integer=True, optional="by layers")
        check_number(
            "reg_covar", self.reg_covar, low=0, open_low=True, optional="by the variance of X"
        )
        check_number(
            "max_epochs", self.max_epochs, low=1, integer=True, optional="by the size of X"
        )
        check_number(
            "batch_size", self.batch_size, low=1, integer=True, optional="by the objective"
        )
        check_number(
            "learning_rate", self.learning_rate, low=0, open_low=True, optional="by the objective"
        )
        check_number("tol", self.tol, low=0)
        check_number("n_iter_no_change", self.n_iter_no_change, low=1, integer=True)
        self._check_validation_fraction()
        check_bool("warm_start", self.warm_start)
        if not isinstance(self.verbose, bool | np.bool_):
            check_number("verbose", self.verbose, low=0, integer=True)
        check_checkpoint(self.checkpoint, self.checkpoint_minutes)
        check_device(self.device)

    def _check_validation_fraction(self) -> None:
        check_number(
            "validation_fraction", self.validation_fraction, low=0, high=1, open_low=True,
            optional="no validation",
        )  # fmt: skip

    def _share_held_out(self, data: Images | Stream) -> float | None:
        """What `validation_fraction` says of these images."""
        del data
        assert not isinstance(self.validation_fraction, str)
        return self.validation_fraction

    def _plan(self, shape: Shape, n_images: int) -> _fitting.Plan:
        reserved = set(self.get_params(deep=False))
        return _fitting.plan_stack(
            self.layers, self.n_components, shape, n_images, reserved, self.objective
        )

    def _build(self, images: Images | Stream) -> Network:
        return _fitting.build_stack(
            self._plan(images.shape, images.n_images), images, self.objective,
            overridden=self.n_components is not None,
        )  # fmt: skip

    def summary(self) -> str:
        """Describe the stack as text: a table of its layers.

        Before `fit` it is the stack that the parameters ask for, by `layers="auto"` that for very
        many images; after it the fitted one, with the number of active components: those that have
        at least a tenth of an equal weight; of mixtures at each position, their mean number.

        Returns
        -------
        str

        Raises
        ------
        NotFittedError
            If the estimator is not fitted, and the parameters do not say for what images.
        """
        network, notes = self._described()
        fitted = hasattr(self, "_network")
        return _summary.text(network, type(self).__name__, notes, fitted=fitted)

    def _html_repr(self) -> str:
        """What notebooks show."""
        drawn: str = estimator_html_repr(self)
        # A representation must not fail: without images, or with bad parameters, none is drawn.
        with suppress(Exception):
            network, notes = self._described()
            drawn += _summary.html(network, notes, fitted=hasattr(self, "_network"))
        return drawn

    def _try_out(self) -> None:
        super()._try_out()
        self.summary()
        defaults = OBJECTIVES[self._fitted_objective]
        defaults.objective(self._network, defaults.n_steps, 1.0, self._progress)

    def _described(self) -> tuple[Network, list[str]]:
        """The network, or an outline of it, and what else there is to say."""
        if not hasattr(self, "_network"):
            shape = check_image_shape(self.image_shape)
            if shape is None:
                raise NotFittedError(
                    f"This {type(self).__name__} has no stack yet. Call fit, or set image_shape."
                )
            plan = self._plan(shape, sys.maxsize)
            return _fitting.outline(plan, shape, self.objective), ["Not fitted."]
        last, top = self.history_[-1], self._network.top
        notes = [f"{self._network.n_parameters:,} parameters."]
        if self._network.n_clusters != top.n_components:
            notes.append(
                f"{self._network.n_clusters} clusters, merged from {top.n_components} components."
            )
        if self._network.image_shape[1:] == (1, 1):
            notes.append("Rows are plain features; for images, set image_shape.")
        held_out = f", {last['validation_loss']:.4g} held out" if "validation_loss" in last else ""
        end = ", until it stood still" if self.converged_ else ""
        notes.append(f"{self.n_iter_} epochs; log-likelihood {last['loss']:.4g}{held_out}{end}.")
        return self._network, notes

    def _start(self, images: Images | Stream, rng: np.random.RandomState) -> Network:
        if isinstance(self.layers, str) and self.layers == "auto":
            _fitting.warn_of_pixels(images)
        network = self._build(images)
        _fitting.initialise(network, images, self.reg_covar, rng)
        return network.to(check_device(self.device))

    def _earlier_training(self, images: Images | Stream) -> tuple[Network | None, Any]:
        """A copy of the earlier fit for `warm_start`, if its stack is the one asked for."""
        if self.warm_start and hasattr(self, "_network"):
            old = self._network_in_place()
            new = self._build(images)
            if _fitting.same_stack(new, old):
                old = copy.deepcopy(old)
                old.n_clusters, old.clusters = new.n_clusters, new.clusters.to(old.clusters)
                return old, self._progress and self._progress.again()
        return None, None

    @with_callbacks
    def _train(
        self,
        network: Network,
        progress: Any,
        data: Images | Stream,
        rng: np.random.RandomState,
        checkpoint: Checkpoint | None = None,
        *,
        stream: bool = False,
        shown: tuple[Any, Any] = (None, None),
    ) -> Outcome:
        """Train the network and, when all has gone well, make it the fitted one.

        Callbacks see `shown`, the images and labels as the user gave them.
        """
        self._mixture_name(network, "score_layer", self.score_layer)
        self._check_network(network)
        settings = Settings(
            **{name: getattr(self, name) for name in Settings._fields}
            | {"validation_fraction": self._share_held_out(data)}
        )

        def fitted(history: list[HistoryRow], held_out: Any) -> dict[str, Any]:
            """Attributes of this estimator as if training had ended now."""
            ended = type(self).__new__(type(self))
            ended.__dict__ = self.__dict__.copy()
            ended.random_state = copy.deepcopy(self.random_state)
            result = Result(Outcome(list(history), converged=False), None, held_out)
            ended._adopt(copy.deepcopy(network), result, data, copy.deepcopy(rng))
            parameters = self.get_params(deep=False)
            return {name: value for name, value in vars(ended).items() if name not in parameters}

        with Report(self, network, *shown, fitted, with_callbacks=not stream) as report:
            try:
                result = _fitting.train_network(
                    network, progress, data, rng, settings,
                    stream=stream, report=report, checkpoint=checkpoint,
                )  # fmt: skip
            except FloatingPointError as error:
                default = OBJECTIVES[self.objective].learning_rate
                raise ValueError(
                    f"learning_rate={self.learning_rate or default} made training diverge: "
                    f"{error}. Choose a smaller one; the default is {default}. Or look for extreme "
                    "values in X, which do the same."
                ) from error
            if stream and progress:
                result.outcome.history[0]["epoch"] = len(self.history_) + 1
                result.outcome.history[:0] = self.history_
            self._adopt(network, result, data, rng)
            report.end()
        if checkpoint is not None and not result.outcome.interrupted:
            checkpoint.remove()
        return result.outcome

    def _adopt(
        self,
        network: Network,
        result: Result,
        data: Images | Stream,
        rng: np.random.RandomState,
    ) -> None:
        """Make a trained network the fitted one."""
        _fitting.merge_components(network, data, rng)
        channels, height, width = data.shape
        self._network, self._progress = network, result.progress
        self._row_shape = data.row_shape
        self.image_shape_ = (height, width, channels)
        self.history_ = result.outcome.history
        self.n_iter_ = len(self.history_)
        self.converged_ = result.outcome.converged
        self._fitted_objective = self.objective
        self._finish(data, result.held_out)

    def _finish(self, data: Images | Stream, held_out: NDArray[np.integer[Any]] | None) -> None:
        """Learn what the estimator needs besides the network.

        `held_out` are the numbers of images that it has not seen.
        """

    def _open_checkpoint(self, rng: np.random.RandomState) -> Checkpoint | None:
        """Where training notes how far it has got, and what an earlier one has noted."""
        if self.checkpoint is None:
            return None
        parameters = self.get_params()
        for name in _WITHOUT_EFFECT:
            parameters.pop(name, None)
        # A generator has moved on since.
        if not isinstance(self.random_state, int | np.integer | None):
            parameters.pop("random_state")
        named = {name: repr(value) for name, value in parameters.items()}
        return Checkpoint(self.checkpoint, self.checkpoint_minutes, named, rng)

    def _fit(
        self, X: Any, y: Any, sample_weight: Any = None, labels: NDArray[np.int64] | None = None
    ) -> tuple[Images | None, Images | Stream]:
        """Check everything and train; `labels` are what the network is to see of `y`.

        Returns
        -------
        images : Images or None
            All, if X is an array.
        data : Images or Stream
            What was trained on, with labels.
        """
        self._check_parameters()
        rng = _distributed.same_random_state(check_random_state(self.random_state))
        checkpoint = self._open_checkpoint(rng)
        if checkpoint is not None:
            rng = checkpoint.rng
        images, data = self._read_images(X, sample_weight, labels, rng)
        network, progress = self._earlier_training(data)
        if network is None:
            network = self._start(data, rng)
        if checkpoint is not None:
            checkpoint.check_images(data.identity)
        outcome = self._train(network, progress, data, rng, checkpoint, shown=(X, y))
        if outcome.interrupted:
            warnings.warn(
                f"Training was interrupted: the model is that of epoch {self.n_iter_}, the last "
                "one that was completed.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return images, data

    def _read_images(
        self,
        X: Any,
        sample_weight: Any,
        y: NDArray[np.int64] | None,
        rng: np.random.RandomState,
    ) -> tuple[Images | None, Images | Stream]:
        """The images to train on, in one of the forms they may have."""
        image_shape = check_image_shape(self.image_shape)
        if y is None and is_stream(X):
            if sample_weight is not None:
                raise ValueError(
                    "sample_weight must be None for X that comes in batches; weights need an array."
                )
            batch_size = self.batch_size or OBJECTIVES[self.objective].batch_size
            return None, Stream(
                X,
                lambda batch, first: check_batch(self, batch, image_shape, first=first),
                batch_size,
                rng,
            )
        images = check_images(self, X, image_shape, reset=True, min_samples=2)
        if y is not None:
            check_consistent_length(images.rows, y)
            images = replace(images, y=y)
        seen = check_weights(sample_weight, images)
        if seen.y is not None:
            seen = _fitting.spread_labels(seen, rng, check_device(self.device))
        return images, seen

    def _check_network(self, network: Network) -> None:
        """Check, before it is trained, that a network can do what the parameters ask for."""
