r"""Semi-supervised VAE: few images are labeled, and the class of the others is summed out.

y ~ p(y)                    uniform over C classes
z ~ p(z)                    prior()
x | z, y ~ p(x|z,y)         likelihood(z, y)
y | x ~ q(y|x)              classifier(x), or the label if it is known
z | x, y ~ q(z|x,y)         posterior(features(x), y)

The class is one-hot encoded, and its C values are appended to the other inputs of a network. In the program, the latent
site "c" is the class, and the site "y" observes its label.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_vae.model.cvae import CVAE


class M2(CVAE):
    """Semi-supervised VAE: the model is p(y) p(z) p(x|z,y), the guide is q(y|x) q(z|x,y).

    The objective is a bound on log p(x, y) for labeled images. For unlabeled images (y = -1) it is a bound on log p(x),
    with an exact sum over the classes. The classifier is trained on the labels by adding ``weight * log q(y|x)`` to the
    objective for each labeled image; estimates of log p(x) exclude this term. Kingma, Rezende, Mohamed, Welling,
    "Semi-supervised Learning with Deep Generative Models", NeurIPS 2014 (https://arxiv.org/abs/1406.5298).

    Args:
        prior: Module; ``prior()`` returns p(z), event shape (D,).
        likelihood: Module; ``likelihood(h)``, h of shape (..., D + C), returns p(x|z,y), event shape (*pixels).
        features: Module; ``features(x)`` returns features of images, shape (..., H).
        posterior: Module; ``posterior(h)``, h of shape (..., H + C), returns q(z|x,y), event shape (D,).
        classifier: Module; ``classifier(x)`` returns the logits of q(y|x), shape (..., C).
        num_classes: C, the number of classes.
        num_labels: Number of labeled training images.
        weight: Weight of the classification term.
    """

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        features: nn.Module,
        posterior: nn.Module,
        classifier: nn.Module,
        num_classes: int,
        num_labels: int,
        weight: float = 50.0,
    ) -> None:
        super().__init__(prior, likelihood, features, posterior, num_classes)
        self.classifier = classifier
        self.num_labels = num_labels
        self.weight = weight

    def model(self, x: Tensor, y: Tensor) -> None:
        """Sample the class c and z; observe the images `x`, shape (B, *pixels), and the labels `y` >= 0, shape (B,)."""
        pyro.module("m2", self)
        is_labeled: Any = y >= 0
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", dist.Categorical(logits=x.new_zeros(self.num_classes)))
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self._with_class(z, c)), obs=x)
            with poutine.mask(mask=is_labeled):
                pyro.sample("y", dist.Categorical(logits=_one_hot_logits(c, self.num_classes, x)), obs=y.clamp(min=0))

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Enumerate the class c of unlabeled images, and sample z from the posterior given c.

        Args:
            x: Images, shape (B, *pixels).
            y: Labels, shape (B,); -1 if unknown.
        """
        pyro.module("m2", self)
        is_labeled = y >= 0
        logits = self.classifier(x)
        label_logits = _one_hot_logits(y.clamp(min=0), self.num_classes, x)
        with pyro.plate("data", x.shape[0]):
            log_prob = logits.log_softmax(-1).gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            # Negative, because objectives subtract the terms of the guide.
            pyro.factor("classification", -self.weight * torch.where(is_labeled, log_prob, 0.0), has_rsample=True)
            class_dist = dist.Categorical(logits=torch.where(is_labeled.unsqueeze(-1), label_logits, logits))
            c = pyro.sample("c", class_dist, infer={"enumerate": "parallel"})
            pyro.sample("z", self.posterior(self._with_class(self.features(x), c)))


def _one_hot_logits(c: Tensor, num_classes: int, x: Tensor) -> Tensor:
    """Return logits (..., C) that assign probability 1 to the classes `c`, shape (...)."""
    return torch.where(one_hot(c, num_classes) == 1, x.new_zeros(()), -torch.inf)
