"""Methods of the estimator that learn from images a chunk at a time."""

from __future__ import annotations

import copy
from typing import Any, Self

from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skdcgmm import _distributed
from skdcgmm._generative import GenerativeDCGMM
from skdcgmm._training import OBJECTIVES
from skdcgmm._validation import check_image_shape, check_images, check_number, check_weights


class IncrementalDCGMM(GenerativeDCGMM):
    """Training on a stream of chunks, whose schedules can be opened again."""

    labels_: NDArray[Any]

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Go once over a chunk of images.

        The first chunk fixes the scale of the images and the stack, whose components start from its
        images: let it hold more of them than the stack has components. With `layers="auto"`, each
        chunk merges top components anew into clusters, whose numbers may change.
        The learning rate is planned for 1000 steps of `batch_size` images ("joint") or 4000
        ("layerwise"), and the model is of little use before most of them are done; after them, and
        after a `fit`, it stays at its small last value, unless `reset_annealing` opens it again.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the images of the chunk, relative to their mean.

        Returns
        -------
        self
        """
        with self._unchanged_on_failure():
            self._check_parameters()
            rng = _distributed.same_random_state(check_random_state(self.random_state))
            if hasattr(self, "_network"):
                if self.objective != self._fitted_objective:
                    raise ValueError(
                        f"objective must stay {self._fitted_objective!r} in a stream that has "
                        f"begun with it; got {self.objective!r}. Set it back, or call fit."
                    )
                images = self._check_fitted_images(X)
                seen = check_weights(sample_weight, images)
                network, progress = copy.deepcopy(self._network_in_place()), self._progress
            else:
                shape = check_image_shape(self.image_shape)
                images = check_images(self, X, shape, reset=True, min_samples=2)
                seen = check_weights(sample_weight, images)
                network, progress = self._start(seen, rng), None
            self._train(network, progress, seen, rng, stream=True)
            self.labels_ = self._predict_images(images)
        return self

    def reset_annealing(self, fraction: float = 1.0) -> Self:
        """Open the schedules of training again, so that `partial_fit` can learn new images.

        At the end of its schedule, a model hardly changes. Taken back by a fraction of it, learning
        rates, the temperature and the neighbourhoods of components are as wide again as they were
        then: the more, the faster what is new is learnt, and what is not seen again forgotten.

        Parameters
        ----------
        fraction : float, default=1.0
            Share of the schedule that is gone through again: 1 is all of it, 0 none.

        Returns
        -------
        self

        References
        ----------
        B. Pfülb, A. Gepperth: Overcoming Catastrophic Forgetting with Gaussian Mixture Replay.
        IJCNN 2021. arXiv:2104.09220.
        """
        check_is_fitted(self)
        check_number("fraction", fraction, low=0, high=1, closed_high=True)
        defaults = OBJECTIVES[self._fitted_objective]
        training = defaults.objective(
            self._network, defaults.n_steps, self.learning_rate or defaults.learning_rate,
            self._progress,
        )  # fmt: skip
        training.reopen(fraction)
        self._progress = training.progress
        return self
