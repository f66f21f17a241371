"""What the estimators have in common: between scikit-learn's conventions and the core."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from tqdm import tqdm

from skdcgmm import _distributed, _fitting
from skdcgmm._checkpoint import Checkpoint
from skdcgmm._composition import LayersMixin
from skdcgmm._fitting import Settings
from skdcgmm._images import FloatArray, Images
from skdcgmm._network import Network
from skdcgmm._parameters import FittedParametersMixin
from skdcgmm._stream import Stream, is_stream
from skdcgmm._training import OBJECTIVES, HistoryRow
from skdcgmm._tree import JointNetwork
from skdcgmm._validation import (
    answer,
    check_batch,
    check_checkpoint,
    check_choice,
    check_device,
    check_image_shape,
    check_images,
    check_number,
    check_weights,
)

# Parameters that a training does not depend on.
_WITHOUT_EFFECT = (
    "checkpoint", "checkpoint_minutes", "contamination", "device", "score_layer", "score_method",
    "transform_layers", "verbose",
)  # fmt: skip
SCORE_METHODS = ("density", "contrast", "layer")


def check_joint(network: Network, purpose: str) -> JointNetwork:
    """The network, if it is one density, or an error that says how to get one."""
    if not isinstance(network, JointNetwork):
        raise ValueError(
            f"{purpose} needs one density over images, which a stack of several layers has "
            "only if it is trained as one: choose objective='joint'. For a layer-wise stack, "
            "choose score_method='layer', and give a grid search a scoring, such as "
            "'adjusted_rand_score' with known labels y."
        )
    return network


def check_deep(network: Network, purpose: str) -> None:
    """Raise an error if a network has one layer only."""
    if len(network.mixtures) == 1:
        raise ValueError(
            f"{purpose} compares a stack with its lower layers, but this one has one layer. "
            "Choose score_method='density', or a stack of several layers."
        )


class BaseDCGMM(FittedParametersMixin, LayersMixin):
    """Checks, building, training and batched prediction."""

    n_components: int | None
    image_shape: tuple[int, ...] | None
    objective: str
    score_method: str
    score_layer: int | str
    reg_covar: float | None
    max_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    tol: float
    n_iter_no_change: int
    validation_fraction: float | None
    warm_start: bool
    device: str | torch.device
    random_state: int | np.random.RandomState | None
    verbose: int
    checkpoint: str | os.PathLike[str] | None
    checkpoint_minutes: float
    history_: list[HistoryRow]

    _score_methods: tuple[str, ...] = SCORE_METHODS

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """A state without tensors on a GPU, so that it can be loaded anywhere."""
        state = dict(super().__getstate__())
        if "_network" in state:
            state["_network"] = copy.deepcopy(self._network).cpu()
        return state

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        before = self.__dict__.copy()
        try:
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
        check_number(
            "validation_fraction", self.validation_fraction, low=0, high=1, open_low=True,
            optional="no validation",
        )  # fmt: skip
        check_checkpoint(self.checkpoint, self.checkpoint_minutes)
        check_device(self.device)

    def _build(self, images: Images | Stream) -> Network:
        reserved = set(self.get_params(deep=False))
        return _fitting.build_stack(
            self.layers, self.n_components, images, reserved, self.objective
        )

    def _start(self, images: Images | Stream, rng: np.random.RandomState) -> Network:
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
                # Layer-wise annealing goes on; a rate of one cycle starts a new cycle.
                progress = None if self.objective == "joint" else self._progress
                return old, progress
        return None, None

    def _train(
        self,
        network: Network,
        progress: Any,
        data: Images | Stream,
        rng: np.random.RandomState,
        checkpoint: Checkpoint | None = None,
        *,
        stream: bool = False,
    ) -> None:
        """Train the network and, when all has gone well, make it the fitted one."""
        self._mixture_name(network, "score_layer", self.score_layer)
        self._check_network(network)
        settings = Settings(**{name: getattr(self, name) for name in Settings._fields})
        with tqdm(unit="epoch", disable=not self.verbose) as bar:

            def on_epoch(row: HistoryRow) -> None:
                bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
                bar.update()

            try:
                outcome, progress_now = _fitting.train_network(
                    network, progress, data, rng, settings,
                    stream=stream, on_epoch=on_epoch, checkpoint=checkpoint,
                )  # fmt: skip
            except FloatingPointError as error:
                default = OBJECTIVES[self.objective].learning_rate
                raise ValueError(
                    f"learning_rate={self.learning_rate or default} made training diverge: "
                    f"{error}. Choose a smaller one; the default is {default}."
                ) from error
        _fitting.merge_components(network, data, rng)
        if outcome.interrupted:
            warnings.warn(
                f"Training was interrupted: the model is that of epoch {len(outcome.history)}, "
                "the last one that was completed.",
                ConvergenceWarning,
                stacklevel=4,
            )
        elif checkpoint is not None:
            checkpoint.remove()
        channels, height, width = data.shape
        if stream and progress:
            outcome.history[0]["epoch"] = len(self.history_) + 1
            self.history_ = self.history_ + outcome.history
        else:
            self.history_ = outcome.history
        self._network, self._progress = network, progress_now
        self._row_shape = data.row_shape
        self.image_shape_ = (height, width, channels)
        self.n_iter_ = len(self.history_)
        self.converged_ = outcome.converged
        self._fitted_objective = self.objective

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
        self, X: Any, sample_weight: Any = None, y: NDArray[np.int64] | None = None
    ) -> tuple[Images | None, Images | Stream]:
        """Check everything and train.

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
        images, data = self._read_images(X, sample_weight, y, rng)
        network, progress = self._earlier_training(data)
        if network is None:
            network = self._start(data, rng)
        if checkpoint is not None:
            checkpoint.check_images(data.identity)
        self._train(network, progress, data, rng, checkpoint)
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

    def _joint_network(self, purpose: str) -> JointNetwork:
        """The fitted network, if it is one density, or an error that says how to get one."""
        return check_joint(self._network_in_place(), purpose)

    def _check_fitted_images(self, X: Any) -> Images:
        check_is_fitted(self)
        return check_images(self, X, self._network.image_shape, reset=False)

    def _network_in_place(self) -> Network:
        """The fitted network on `device`, or where it is if there is no such device here."""
        try:
            device = check_device(self.device)
        except ValueError:  # `fit` reports it; a model from a GPU also works without one
            return self._network
        return self._network.to(device)

    @staticmethod
    def _mixture_name(network: Network, parameter: str, value: int | str) -> str:
        """The name of a mixture layer given by name or by index."""
        names = list(network.mixtures)
        if isinstance(value, str) and value in names:
            return value
        if isinstance(value, int | np.integer) and -len(names) <= value < len(names):
            return names[value]
        raise ValueError(
            f"{parameter} must be a mixture layer, one of {names} or its index among them; "
            f"got {value!r}."
        )

    @classmethod
    def _mixture_names(cls, network: Network, parameter: str, value: Any) -> list[str]:
        """The names of mixture layers given by one name or index, or by a list of them."""
        values = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        if not values:
            raise ValueError(
                f"{parameter} must name at least one mixture layer; got {value!r}. "
                f"There are {list(network.mixtures)}."
            )
        return [cls._mixture_name(network, parameter, each) for each in values]

    def _map(self, images: Images, function: Callable[[Network, Tensor], Tensor]) -> NDArray[Any]:
        network = self._network_in_place()
        return images.map(lambda x: function(network, x), network.scale, network.numbers_per_image)

    def _map_joint(
        self, images: Images, purpose: str, function: Callable[[JointNetwork, Tensor], Tensor]
    ) -> NDArray[Any]:
        """The same for what only one density over images can do; `purpose` says what."""
        network = self._joint_network(purpose)
        return self._map(images, lambda _, x: function(network, x))

    def _apply(self, X: Any, function: Callable[[Network, Tensor], Tensor]) -> Any:
        """Apply a function of the network and image tensors to X; answer in kind."""
        return answer(X, self._map(self._check_fitted_images(X), function))

    def _responsibilities(self, images: Images, names: list[str]) -> FloatArray:
        """Responsibilities of the components of mixture layers as rows."""

        def rows(network: Network, x: Tensor) -> Tensor:
            by_layer = network.responsibilities(x, names)  # each (N, K, rows, columns)
            return torch.cat([r.permute(0, 2, 3, 1).flatten(1) for r in by_layer], 1)

        return self._map(images, rows)

    def _labels(self, images: Images) -> NDArray[Any]:
        return self._map(images, lambda network, x: network.cluster_probabilities(x).argmax(1))

    def _score_images(self, images: Images, method: str, score_layer: int | str) -> FloatArray:
        """Score of each image by one of `SCORE_METHODS`."""
        if method == "layer":
            layer = self._mixture_name(self._network, "score_layer", score_layer)
            return self._map(images, lambda network, x: network.layer_log_prob(x, layer))
        purpose = f"score_method={method!r}"
        if method == "density":
            return self._map_joint(images, purpose, lambda network, x: network.log_prob(x))
        check_deep(self._network, purpose)
        return self._map_joint(images, purpose, lambda network, x: network.contrast(x))

    def _log_density(self, X: Any) -> FloatArray:
        """Log density of each image, in double precision."""
        images = self._check_fitted_images(X)
        values = self._map_joint(images, "the log density", lambda network, x: network.log_prob(x))
        return values.astype(np.float64)
