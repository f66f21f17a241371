"""What fitted estimators have in common: between scikit-learn's conventions and the core."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skdcgmm import _packing, _saving
from skdcgmm._composition import LayersMixin
from skdcgmm._gaussian import ordinary_tensors
from skdcgmm._images import FloatArray, Images
from skdcgmm._network import Network
from skdcgmm._parameters import FittedParametersMixin
from skdcgmm._training import HistoryRow
from skdcgmm._tree import JointNetwork
from skdcgmm._validation import answer, check_device, check_images

# What scikit-learn adds to an estimator, other than its parameters and what it has learnt.
_NOT_SAVED = (
    "_skl_callbacks", "_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx",
    "_metadata_request", "_sklearn_version",
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
    """A fitted network: checks, batched prediction, files."""

    n_components: int | None
    image_shape: tuple[int, ...] | None
    score_method: str
    score_layer: int | str
    device: str | torch.device
    random_state: int | np.random.RandomState | None
    history_: list[HistoryRow]

    _network: Network
    _progress: Any
    _row_shape: tuple[int, ...]
    _score_methods: tuple[str, ...] = SCORE_METHODS

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """A state of plain values and arrays, so that it can be stored and loaded anywhere."""
        state = dict(super().__getstate__())
        if "_network" in state:
            state["_network"] = _packing.pack(self._network)
            state["_progress"] = _packing.arrays_of(self._progress)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_network" in state:
            with ordinary_tensors():
                self._network = _packing.unpack(state["_network"])
                self._progress = _packing.tensors_of(state["_progress"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file that holds no code, only arrays and plain values.

        The file has the format of safetensors, with the parameters as JSON in its header, and can
        be loaded with or without a GPU. A random state, the place in a stream of chunks and the
        output format are kept; callbacks and metadata requests are not. Paths and devices come
        back as strings.

        Parameters
        ----------
        path : str or path-like
            An earlier file there is replaced once the new one is whole.

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        FileNotFoundError
            If there is no such folder.
        TypeError
            If a parameter is not a plain value; the message names it.
        """
        check_is_fitted(self)
        state = {k: v for k, v in self.__getstate__().items() if k not in _NOT_SAVED}
        _saving.write(path, type(self).__name__, state)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an estimator that `save` has written.

        Reading runs no code from the file, which may come from anyone.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        estimator
            Of the class that it was; on its `device` if that is here, else where it can be.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not whole, has been changed, is of another class, or of a later version.
        """
        try:
            state = _saving.read(path, cls.__name__)
            made = cls.__new__(cls)
            made._check_state(state)
            made.__setstate__(state)
            made._try_out()
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever the bytes of a broken file lead to
            raise ValueError(
                f"path={str(path)!r} holds no {cls.__name__} that can be loaded "
                f"({type(error).__name__}: {error}). Give a file that {cls.__name__}.save has "
                "written."
            ) from error
        return made

    def _check_state(self, state: dict[str, Any]) -> None:
        """Raise an error if a state does not consist of the parameters and of fitted attributes."""
        parameters = set(self._get_param_names())
        missing = parameters - set(state)
        odd = [
            name
            for name in set(state) - parameters
            if name.startswith("__") or name in _NOT_SAVED or hasattr(type(self), name)
        ]
        if missing or odd:
            raise ValueError(f"it lacks {sorted(missing)} and has {sorted(odd)}")

    def _try_out(self) -> None:
        """Raise an error if the fitted attributes do not fit each other."""
        network = self._network
        n_values = math.prod(network.image_shape)
        if not n_values == self.n_features_in_ == math.prod(self._row_shape):
            raise ValueError("its image shapes differ")
        if not (network.scale > 0).all():
            raise ValueError("its scale is not positive")
        if not (network.clusters.min() >= 0 and network.clusters.max() < network.n_clusters):
            raise ValueError("its clusters are out of range")
        blank = np.zeros((1, n_values), network.shift.numpy().dtype)
        images = Images(blank, network.image_shape, self._row_shape)
        scores = self._map(images, lambda network, x: network.scores(x).amax(1))
        if not np.isfinite(scores).all() or len(self._predict_images(images)) != 1:
            raise ValueError("it gives no finite scores")

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
        with ordinary_tensors():
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
        try:
            return images.map(
                lambda x: function(network, x), network.scale, network.numbers_per_image
            )
        except FloatingPointError as error:
            raise ValueError(
                "X has values so far from those of fit that the densities of an image overflow, "
                "and no cluster is likelier than another. Look for extreme values in X."
            ) from error

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

    def _predict_images(self, images: Images) -> NDArray[Any]:
        """What `predict` answers."""
        return self._map(images, lambda network, x: network.cluster_probabilities(x).argmax(1))

    def _score_images(self, images: Images, method: str, score_layer: int | str) -> FloatArray:
        """Score of each image by one of `SCORE_METHODS`; that of one beyond all is -inf."""
        purpose = f"score_method={method!r}"
        if method == "layer":
            layer = self._mixture_name(self._network, "score_layer", score_layer)
            scores = self._map(images, lambda network, x: network.layer_log_prob(x, layer))
        elif method == "density":
            scores = self._map_joint(images, purpose, lambda network, x: network.log_prob(x))
        else:
            check_deep(self._network, purpose)
            scores = self._map_joint(images, purpose, lambda network, x: network.contrast(x))
        return np.where(np.isfinite(scores), scores, -np.inf)

    def _log_density(self, X: Any) -> FloatArray:
        """Log density of each image, in double precision."""
        images = self._check_fitted_images(X)
        values = self._map_joint(images, "the log density", lambda network, x: network.log_prob(x))
        return np.where(np.isfinite(values), values, -np.inf).astype(np.float64)
