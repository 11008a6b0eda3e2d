r"""Frechet distance between features of samples and data, with a classifier trained on the labels of the data set.

    d^2(a, b) = |mean a - mean b|^2 + tr(cov a + cov b - 2 (cov a cov b)^(1/2)),

the squared Wasserstein-2 distance of two Gaussians with the moments of the features: Heusel, Ramsauer, Unterthiner,
Nessler, Hochreiter, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017
(https://arxiv.org/abs/1706.08500), with this network instead of Inception. Distances are comparable only within one
data set and for one number of images: they decrease with the sample size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_vae.errors import UserError
from pyro_vae.trace import read_only

NUM_FEATURES = 64
_STEPS, _BATCH_SIZE, _LEARNING_RATE = 600, 100, 2e-3


class FeatureNetwork(nn.Module):
    """Small convolutional classifier of images of one shape, whose last hidden layer provides the features.

    Args:
        pixel_shape: Height and width, preceded by the number of channels if images have a channel dimension.
        num_classes: Number of classes.
    """

    def __init__(self, pixel_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        *colors, height, width = pixel_shape
        height, width = -(-height // 4), -(-width // 4)
        self.body = nn.Sequential(
            nn.Identity() if colors else nn.Unflatten(1, (1, -1)),
            nn.Conv2d(colors[0] if colors else 1, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * height * width, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits (N, C) of images (N, *pixels)."""
        return self.head(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images (N, *pixels), float64, shape (N, 64), without gradients."""
        with torch.no_grad():
            return torch.cat([self.body(part) for part in x.split(1000)]).double()

    def accuracy(self, x: Tensor, classes: Tensor) -> float:
        """Return the classification accuracy on images, as a check of the quality of the features."""
        with torch.no_grad():
            predicted = torch.cat([self(part).argmax(1) for part in x.split(1000)])
        return float((predicted == classes).double().mean())


def train_feature_network(x: Tensor, classes: Tensor, seed: int) -> FeatureNetwork:
    """Train a feature network on labeled images, in the form that the evaluated programs observe.

    Args:
        x: Images (N, *pixels).
        classes: Integer classes from 0 (N,).
        seed: Random seed of the initial weights and batches. The random state of the caller does not change.
    """
    with read_only(x=x, seed=seed, purpose="features", validate=False), torch.enable_grad():
        net = FeatureNetwork(tuple(x.shape[1:]), int(classes.max()) + 1).to(x)
        optim = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, _STEPS)
        for _ in range(_STEPS):
            batch = torch.randint(len(x), (_BATCH_SIZE,), device=x.device)
            optim.zero_grad()
            cross_entropy(net(x[batch]), classes[batch]).backward()
            optim.step()
            schedule.step()
    return net.eval()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance between features (N, F) and (M, F).

    Raises:
        ValueError: N or M is below 2.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"A covariance needs at least two images; there are {len(a)} and {len(b)}.")
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov().reshape(a.shape[1], -1), b.T.cov().reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # The eigenvalues of cov a cov b are those of this symmetric matrix.
    product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float((shift + cov_a.trace() + cov_b.trace() - 2 * product).clamp(min=0))
