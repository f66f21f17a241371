"""What the estimators have in common: from parameters and images to a fitted stack, and files."""

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skdcgmm.data import Batch, Data, FloatArray, HeldOut, Images
from skdcgmm.estimators import checks, choosing, planning, saving
from skdcgmm.estimators.checks import Seed
from skdcgmm.estimators.planning import OBJECTIVES
from skdcgmm.model import computing, ordinary_tensors, tables
from skdcgmm.model.specs import check_bool, check_choice, check_number
from skdcgmm.model.stack import BaseStack
from skdcgmm.model.tree import Mixtures
from skdcgmm.training import (
    HistoryRow,
    Outcome,
    Standing,
    check_finite,
    ranks,
    share_of_time,
    train,
)
from skdcgmm.training.watchers import CallbackSupportMixin, Checkpoint, Report, with_callbacks

SCORE_METHODS = ("density", "layer")
PIXELS = ("auto", "tiles", "pyramid", "atoms")

# Least number of passes over the data.
_MIN_EPOCHS = 3
# Parameters that a training does not depend on.
_WITHOUT_EFFECT = (
    "checkpoint", "checkpoint_minutes", "contamination", "device", "max_minutes", "method",
    "score_layer", "score_method", "transform_layers", "verbose", "window_size", "window_stride",
)  # fmt: skip


@dataclass(kw_only=True, eq=False, repr=False)
class BaseDCGMM(CallbackSupportMixin, BaseEstimator):
    """A stack that is trained on images: from parameters to a fitted one, and its files."""

    layers: Any = "auto"
    image_shape: tuple[int, ...] | None = None
    pixels: str = "auto"
    objective: str = "joint"
    score_method: str = "density"
    score_layer: int | str = -1
    reg_covar: float | None = None
    max_epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    tol: float = 1e-3
    n_iter_no_change: int = 5
    validation_fraction: float | str | None = None
    warm_start: bool = False
    device: str | torch.device = "auto"
    random_state: Seed = None
    verbose: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_minutes: float = 10.0
    max_minutes: float | None = None
    distributed: bool | None = None

    # No parameters of all; without types, or the dataclass would take them for such.
    n_clusters = cast("int | None", None)
    # Whether pixels="auto" chooses by the images.
    _chooses_pixels: ClassVar[bool] = False
    _score_methods = cast("tuple[str, ...]", SCORE_METHODS)
    # Attributes that `_finish` and `_set_labels` set.
    _LEARNT_FROM_STACK: ClassVar[tuple[str, ...]] = ("_without_units",)

    # --- training -------------------------------------------------------------------------------

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        labels: NDArray[np.int64] | None = None,
        classes: NDArray[Any] | None = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
    ) -> Self:
        """Read the images, start a stack, train it, and adopt it.

        `labels` are the numbers of classes that it sees of y. What has been trained stays, whatever
        happens in the passes after it.
        """
        with checks.unchanged_on_failure(self) as keep:
            self._check_parameters()
            if classes is not None:
                self.classes_ = classes
            rng = ranks.of_first(check_random_state(self.random_state))
            checkpoint = self._open_checkpoint(rng)
            rng = checkpoint.rng
            images, data = checks.read_images(
                self, X, sample_weight, labels, self._batch_size(), rng
            )
            judge = checks.read_judge(self, data.shape, X_val, y_val)
            if judge is None:
                data = data.hold_out(rng, self._share_held_out(data))
            stack, progress = self._start(data, rng, judge=judge)
            if self.checkpoint is not None:
                checkpoint.check_images(" ".join(ranks.gather(data.identity)))
            shown = {"X": X, "y": y}
            outcome: Outcome = self._train(
                stack, progress, data, rng, keep, checkpoint, shown, judge
            )
            self._set_labels(images)
            if not outcome.interrupted:
                checkpoint.remove()
        if outcome.interrupted:
            warnings.warn(
                f"Training was interrupted: the model is that of the {self.n_iter_} epochs that "
                "were completed.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _check_parameters(self) -> None:
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        check_choice("pixels", self.pixels, PIXELS)
        check_choice("score_method", self.score_method, self._score_methods)
        for name, low, optional in (
            ("n_clusters", 1, "one for each component"),
            ("max_epochs", 1, "by the size of X"),
            ("batch_size", 1, "by the objective"),
            ("n_iter_no_change", 1, ""),
        ):
            check_number(name, getattr(self, name), low=low, integer=True, optional=optional)
        for name, optional in (
            ("reg_covar", "by the variance of X"),
            ("learning_rate", "by the objective"),
            ("max_minutes", "without a limit"),
        ):
            check_number(name, getattr(self, name), low=0, open_low=True, optional=optional)
        check_number("tol", self.tol, low=0)
        self._check_validation_fraction()
        check_bool("warm_start", self.warm_start)
        if not isinstance(self.verbose, bool | np.bool_):
            check_number("verbose", self.verbose, low=0, integer=True)
        checks.check_checkpoint(self.checkpoint, self.checkpoint_minutes)
        checks.check_distributed(self.distributed)
        checks.check_device(self.device)

    def _check_validation_fraction(self) -> None:
        check_number(
            "validation_fraction", self.validation_fraction, low=0, high=1, open_low=True,
            optional="no validation",
        )  # fmt: skip

    def _open_checkpoint(self, rng: RandomState) -> Checkpoint:
        """Where training notes how far it has got, and what an earlier one has noted."""
        parameters = self.get_params()
        for name in _WITHOUT_EFFECT:
            parameters.pop(name, None)
        # A generator has moved on since.
        if not isinstance(self.random_state, int | np.integer | None):
            parameters.pop("random_state")
        named = {name: repr(value) for name, value in parameters.items()}
        return Checkpoint(
            self.checkpoint, self.checkpoint_minutes, named, rng=rng, classes=saving.CLASSES
        )

    def _start(
        self, data: Data, rng: RandomState, *, judge: Images | None = None, stream: bool = False
    ) -> tuple[BaseStack, Any]:
        """A new stack that has been started, or a copy of the earlier fit's, and its progress."""
        plain = data.shape[1:] == (1, 1)
        if plain and isinstance(data, Images) and planning.is_auto(self):
            planning.warn_of_pixels(data.rows)
        n_classes = len(self.classes_) if is_classifier(self) else None
        complete = all(ranks.gather(data.complete and (judge is None or judge.complete)))
        n_images = ranks.total(len(data))
        kinds = planning.kinds_of(self, data.shape, complete=complete)
        device = checks.check_device(self.device)
        pixels, bits = choosing.choose_pixels(self, kinds, data, device, rng)
        stack = planning.build(self, data.shape, n_images, n_classes, pixels=pixels, stream=stream)
        self._mixture_name(stack, "score_layer", self.score_layer)
        self._check_stack(stack)
        if planning.goes_on(self, stack):
            earlier = copy.deepcopy(self._stack_in_place())
            return earlier, self._progress and self._progress.again()
        planning.start(stack, data, self.reg_covar, rng)
        self.pixels_bits_ = bits
        return stack.to(device), None

    def _check_stack(self, stack: BaseStack) -> None:
        """Check, before it is trained, that a stack can do what the parameters ask for."""

    def _share_held_out(self, data: Data) -> float | None:
        """What `validation_fraction` says of these images."""
        return cast("float | None", self.validation_fraction)

    def _numbers(self, y: Any, name: str) -> NDArray[np.int64]:
        """Numbers of the classes of images, -1 where unknown."""
        raise NotImplementedError

    @with_callbacks  # type: ignore[untyped-decorator]
    def _train(
        self,
        stack: BaseStack,
        progress: Any,
        data: Data,
        rng: RandomState,
        keep: Callable[[], None],
        checkpoint: Checkpoint,
        shown: dict[str, Any] | None = None,
        judge: Images | None = None,
    ) -> Outcome:
        """Train a stack in place on all images, or go once over a chunk of a stream; adopt it.

        Callbacks see `shown`, the images and labels as the user gave them; a chunk has none.
        Progress is judged by the images `judge`, or by those of the data that are held out.
        """
        chunk = shown is None
        defaults = planning.defaults_of(stack)
        batch_size = self._batch_size()
        if self.batch_size is None:
            batch_size = min(batch_size, planning.largest_step(stack))
        epochs = data.epochs(rng, batch_size, stack.like, ranks.total)
        epochs = epochs.judged_by(judge, batch_size, stack.like)
        n_usual = defaults.steps_for(ranks.total(len(data)))
        usual = max(_MIN_EPOCHS, round(n_usual / epochs.n_batches))
        max_epochs = 1 if chunk else self.max_epochs or usual
        n_steps = defaults.n_steps if chunk else epochs.n_batches * max_epochs
        standing = Standing([])
        if (earlier := checkpoint.restore(stack, rng)) is not None:
            progress, standing = earlier
        rate = self.learning_rate or defaults.learning_rate
        objective = defaults.objective(stack, n_steps, rate, progress)
        ended = partial(self._attributes_of_ended, stack, data, rng, epochs.held_out)
        with closing(Report(self, stack, shown, ended, max_epochs, standing.history)) as report:

            def batches() -> Iterable[Batch]:
                checkpoint.start_epoch(rng)
                report.begin_epoch()
                return epochs.batches()

            try:
                with computing(stack.like.device):
                    outcome = train(
                        objective, stack, batches, epochs.validation,
                        max_epochs=max_epochs, tol=self.tol, standing=standing,
                        n_iter_no_change=self.n_iter_no_change, on_epoch=report.end_epoch,
                        on_step=partial(checkpoint.note, stack, objective),
                        time_used=share_of_time(None if chunk else self.max_minutes),
                    )  # fmt: skip
                    stack.zero_grad(set_to_none=True)
                    # Few images say nothing of what a label weighs.
                    some = replace(data.sample(batch_size, rng), y=None)
                    check_finite(objective, some.batch(slice(None), stack.like))
                if chunk and progress:
                    outcome.history[0]["epoch"] = len(self.history_) + 1
                    outcome.history[:0] = self.history_
                self._adopt(stack, outcome, data)
                keep()
                self._finish(data, epochs.held_out, rng)
            except FloatingPointError as error:
                raise ValueError(
                    f"learning_rate={rate} made training diverge: {error}. Choose a smaller one; "
                    f"the default is {defaults.learning_rate}. Or look for extreme values in X, "
                    "which do the same."
                ) from error
            report.end()
        return outcome

    def _batch_size(self) -> int:
        return self.batch_size or OBJECTIVES[self.objective].batch_size

    def _attributes_of_ended(
        self,
        stack: BaseStack,
        data: Data,
        rng: RandomState,
        held_out: HeldOut | None,
        history: list[HistoryRow],
    ) -> dict[str, Any]:
        """Attributes of this estimator as if training had ended now."""
        ended = type(self).__new__(type(self))
        ended.__dict__ = self.__dict__.copy()
        ended.random_state = copy.deepcopy(self.random_state)
        ended._adopt(copy.deepcopy(stack), Outcome(list(history), converged=False), data)
        ended._finish(data, held_out, copy.deepcopy(rng))
        parameters = self.get_params(deep=False)
        return {name: value for name, value in vars(ended).items() if name not in parameters}

    def _adopt(self, stack: BaseStack, outcome: Outcome, data: Data) -> None:
        """Make a trained stack the fitted one; what was learnt from another one goes."""
        for name in self._LEARNT_FROM_STACK:
            self.__dict__.pop(name, None)
        channels, height, width = data.shape
        self._stack, self._progress = stack, outcome.progress
        self._row_shape = data.row_shape
        self._integers = data.integers
        self.image_shape_ = (height, width, channels)
        self.history_ = outcome.history
        self.n_iter_ = len(self.history_)
        self.converged_ = outcome.converged
        self._fitted_objective = self.objective

    def _finish(self, data: Data, held_out: HeldOut | None, rng: RandomState) -> None:
        """Learn what the estimator needs besides the stack.

        `held_out` are images that it has not seen.
        """

    def _set_labels(self, images: Images | None) -> None:
        """Set what is known of all images, if they are in an array."""

    def _partial_fit(self, X: Any, sample_weight: Any) -> Self:
        """Go once over a chunk of images: with a new stack, or with that of the chunks before."""
        with checks.unchanged_on_failure(self) as keep:
            self._check_parameters()
            rng = ranks.of_first(check_random_state(self.random_state))
            has_units = True
            if hasattr(self, "_stack") and not hasattr(self, "_without_units"):
                if self.objective != self._fitted_objective:
                    raise ValueError(
                        f"objective must stay {self._fitted_objective!r} in a stream that has "
                        f"begun with it; got {self.objective!r}. Set it back, or call fit."
                    )
                images = self._check_fitted_images(X)
                self._check_whole(images, "training")
                data = checks.check_weights(sample_weight, images)
                planning.check_n_clusters(self.n_clusters, self._stack.top.n_components)
                stack, progress = copy.deepcopy(self._stack_in_place()), self._progress
                planning.check_units(stack, images)
            else:
                shape = checks.check_image_shape(self.image_shape)
                images = checks.check_images(self, X, shape, reset=True, min_samples=2)
                data = checks.check_weights(sample_weight, images)
                has_units = planning.check_first_chunk(self, data)
                stack, progress = self._start(data, rng, stream=True)
            self._train(stack, progress, data, rng, keep, Checkpoint(rng=rng))
            if not has_units:
                self._without_units = True
            self._set_labels(images)
        return self

    def _reset_annealing(self, fraction: float) -> Self:
        """Take the schedules of training back by a fraction."""
        check_is_fitted(self)
        check_number("fraction", fraction, low=0, high=1, closed_high=True)
        defaults = planning.defaults_of(self._stack)
        training = defaults.objective(
            self._stack, defaults.n_steps, self.learning_rate or defaults.learning_rate,
            self._progress,
        )  # fmt: skip
        training.reopen(fraction)
        self._progress = training.progress
        return self

    # --- prediction -----------------------------------------------------------------------------

    def score_samples(self, X: Any) -> Any:
        """Log density of each image, or the log-likelihood of a layer, by `score_method`.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            In nats; the density in the units of X, of the observed values of each image.

        Raises
        ------
        ValueError
            If a layer-wise stack of several layers, which has no density, is asked for one.
        """
        return checks.answer(X, self._score_images(self._check_fitted_images(X)))

    def _score_images(self, images: Images) -> FloatArray:
        check_choice("score_method", self.score_method, SCORE_METHODS)
        return self._score(images, self.score_method, self.score_layer)

    def _check_fitted_images(self, X: Any) -> Images:
        check_is_fitted(self)
        return checks.check_images(self, X, self._stack.image_shape, reset=False)

    def _stack_in_place(self) -> BaseStack:
        """The fitted stack on `device`, or where it is if there is no such device here."""
        try:
            device = checks.check_device(self.device)
        except ValueError:  # `fit` reports it; a model from a GPU also works without one
            return self._stack
        with ordinary_tensors():
            return self._stack.to(device)

    @contextmanager
    def _mixtures(self) -> Iterator[Any]:
        """The fitted stack at its numbers, without gradients."""
        stack = self._stack_in_place()
        with computing(stack.like.device), torch.no_grad():
            yield stack()

    def _map(
        self,
        images: Images,
        function: Callable[[Any, Tensor], Tensor],
        n_held: int = 1,
        n_each: int = 1,
        more: int = 0,
    ) -> NDArray[Any]:
        """Map a function of the fitted mixtures and of image tensors over images.

        Memory holds the numbers of `n_held` passes up the stack at a time, or `more` for an image.
        Each row of X is there `n_each` times. If images have classes, the mixtures are those of
        these.
        """
        n_done = 0

        def counted(x: Tensor) -> Tensor:
            nonlocal n_done
            if images.y is None:
                values = function(mixtures, x)
            else:
                labels = torch.from_numpy(images.y[n_done : n_done + len(x)]).to(x.device)
                values = mixtures.map_by_class(function, x, labels)
            n_done += len(x)
            return values

        try:
            with self._mixtures() as mixtures:
                n_numbers = max(more, n_held * mixtures.numbers_per_image)
                return images.map(counted, self._stack.like, n_numbers)
        except tables.ImageOverflowError as error:
            raise ValueError(
                "X has values so far from those of fit that the densities of an image overflow, "
                "and no cluster is likelier than another: the first such image is row "
                f"{(n_done + error.image) // n_each}. Look for extreme values in X."
            ) from error

    def _responsibilities(self, images: Images, names: list[str]) -> FloatArray:
        """Responsibilities of the components of mixture layers as rows."""

        def rows(mixtures: Mixtures, x: Tensor) -> Tensor:
            by_layer = mixtures.responsibilities(x, names, images.complete)
            # each (N, K, rows, columns)
            return torch.cat([r.permute(0, 2, 3, 1).flatten(1) for r in by_layer], 1)

        return self._map(images, rows)

    def _score(self, images: Images, method: str, score_layer: int | str) -> FloatArray:
        """Score of each image by one of `SCORE_METHODS`; that of one beyond all is -inf."""
        if method == "layer":
            self._check_whole(images, "layer scores")
            layer = self._mixture_name(self._stack, "score_layer", score_layer)
            scores = self._map(images, lambda mixtures, x: mixtures.layer_log_prob(x, layer))
        else:
            planning.check_joint(self._stack, "the log density")
            scores = self._map(images, lambda tree, x: tree.log_prob(x, images.complete))
        return np.where(np.isfinite(scores), scores, -np.inf)

    def _check_whole(self, images: Images, purpose: str) -> None:
        """Raise an error if pixels are missing that a pyramid needs for this purpose."""
        if self._stack.pyramid is not None and not images.complete:
            planning.refuse_missing(purpose)

    @staticmethod
    def _mixture_name(stack: BaseStack, parameter: str, value: int | str) -> str:
        """The name of a mixture layer given by name or by index."""
        names = list(stack.names)
        if isinstance(value, str) and value in names:
            return value
        if isinstance(value, int | np.integer) and -len(names) <= value < len(names):
            return names[value]
        raise ValueError(
            f"{parameter} must be a mixture layer, one of {names} or its index among them; "
            f"got {value!r}."
        )

    # --- files ----------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """A state of plain values and arrays, so that it can be stored and loaded anywhere."""
        return saving.packed(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(saving.unpacked(state))

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
        saving.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an estimator that `save` has written.

        Reading runs no code from the file, and checks names, types and shapes; the memory that it
        takes is bounded by the size of the file.

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
            If the file is not whole, of another class, or of another version.
        """
        return saving.load(cls, path)
