"""A small convolutional classifier, and how near two sets of images are in its features."""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

N_EPOCHS, BATCH_SIZE, MAX_RATE = 3, 128, 3e-3
N_FEATURES = 64
# Images of each side, and neighbours, for precision and recall.
N_MANIFOLD, N_NEIGHBOURS = 5000, 3


class Classifier:
    """Two convolutions, 64 features, ten classes; for square images of one channel."""

    def __init__(self, seed=0):
        self._seed = seed

    def fit(self, X, y):
        side = round(X.shape[1] ** 0.5)
        images = torch.as_tensor(X, dtype=torch.float32).view(-1, 1, side, side)
        targets = torch.as_tensor(y)
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            self._features = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, N_FEATURES), nn.ReLU(),
            )  # fmt: skip
            self._head = nn.Linear(N_FEATURES, 10)
            network = nn.Sequential(self._features, self._head)
            n_steps = N_EPOCHS * -(-len(X) // BATCH_SIZE)
            optimizer = torch.optim.Adam(network.parameters())
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_RATE, n_steps)
            for _ in range(N_EPOCHS):
                for batch in torch.randperm(len(X)).split(BATCH_SIZE):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(network(images[batch]), targets[batch]).backward()
                    optimizer.step()
                    schedule.step()
        return self

    @torch.no_grad()
    def features(self, X):
        side = round(X.shape[1] ** 0.5)
        images = torch.as_tensor(X, dtype=torch.float32).view(-1, 1, side, side)
        return torch.cat([self._features(part) for part in images.split(1000)]).double().numpy()

    @torch.no_grad()
    def accuracy(self, X, y):
        features = torch.as_tensor(self.features(X), dtype=torch.float32)
        return float((self._head(features).argmax(1).numpy() == y).mean())


def frechet_distance(a, b):
    """Fréchet distance between the Gaussians with the moments of two sets of features."""
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    eigenvalues = np.linalg.eigvals(covariance_a @ covariance_b).real
    shared = 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(shift + np.trace(covariance_a) + np.trace(covariance_b) - shared)


def precision_recall(samples, images):
    """Share of samples among the images' neighbourhoods, and of images among the samples'.

    A neighbourhood is a ball that reaches to the third neighbour (Kynkäänniemi et al., NeurIPS
    2019).
    """

    def share(points, manifold):
        neighbours = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(manifold)
        radius = neighbours.kneighbors()[0][:, -1]
        distance = torch.cdist(torch.as_tensor(points), torch.as_tensor(manifold)).numpy()
        return float((distance <= radius).any(1).mean())

    samples, images = samples[:N_MANIFOLD], images[:N_MANIFOLD]
    return share(samples, images), share(images, samples)
