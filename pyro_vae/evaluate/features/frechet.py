r"""How like the data samples are: a Frechet distance of features, whose network is trained here on the data's labels.

    d^2(a, b) = |mean a - mean b|^2 + tr(cov a + cov b - 2 (cov a cov b)^(1/2)),

the squared Wasserstein distance of two Gaussians with the moments of the features: Heusel, Ramsauer, Unterthiner,
Nessler, Hochreiter, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017
(https://arxiv.org/abs/1706.08500), with a network of their own in the place of Inception's. So these distances compare
with each other on the same data, and with nothing else; they shrink with the number of images.
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
    """A small convolutional classifier of images of one shape, which gives its last hidden layer as features.

    Args:
        pixel_shape: height and width, after the channels of images that have some.
        num_classes: of the labels.
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
        """Return the logits of the classes of images (N, *pixels)."""
        return self.head(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images (N, *pixels), float64 (N, 64)."""
        with torch.no_grad():
            return torch.cat([self.body(part) for part in x.split(1000)]).double()

    def accuracy(self, x: Tensor, classes: Tensor) -> float:
        """Return the share of images whose class it knows: whether its features are worth anything."""
        with torch.no_grad():
            predicted = torch.cat([self(part).argmax(1) for part in x.split(1000)])
        return float((predicted == classes).double().mean())


def train_feature_network(x: Tensor, classes: Tensor, seed: int) -> FeatureNetwork:
    """Train a network on labeled images, as the programs to be judged observe them.

    Args:
        x: images (N, *pixels).
        classes: integers from 0 on (N,).
        seed: of weights and order; the caller's random streams stay as they are.
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
    """Return the squared Frechet distance of features (N, F) and (M, F).

    Raises:
        ValueError: fewer than two of either.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"A covariance needs two images or more, and there are {len(a)} and {len(b)}.")
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov().reshape(a.shape[1], -1), b.T.cov().reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # The eigenvalues of cov a cov b are those of this symmetric matrix.
    product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float((shift + cov_a.trace() + cov_b.trace() - 2 * product).clamp(min=0))
