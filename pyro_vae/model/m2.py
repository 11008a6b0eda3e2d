r"""The semi-supervised VAE: few images have a label, and the class of the others is summed out.

y ~ p(y)                    uniform over C classes
z ~ p(z)                    prior()
x | z, y ~ p(x|z,y)         likelihood(z, y)
y | x ~ q(y|x)              classifier(x), the label where there is one
z | x, y ~ q(z|x,y)         posterior(features(x), y)

A class enters as C numbers, one of them 1, beside what the networks take otherwise.
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
    """Generative process p(y) p(z) p(x|z,y), trained on images of which some have a label y and the others -1.

    The bound of an image is that on log p(x, y) where it has a label, and otherwise that on log p(x), the sum over its
    classes taken exactly. The classifier learns from the labels by a term of the loss beside the bound,
    ``weight * log q(y|x)`` of each labeled image, which no estimate of log p(x) contains. Kingma, Rezende, Mohamed,
    Welling, "Semi-supervised Learning with Deep Generative Models", NeurIPS 2014 (https://arxiv.org/abs/1406.5298).

    Args:
        prior: module; ``prior()`` is a distribution of event shape (D,).
        likelihood: module; ``likelihood(h)`` of h (..., D + C) is a distribution of event shape (*pixels).
        features: module; ``features(x)`` is (..., H).
        posterior: module; ``posterior(h)`` of h (..., H + C) is a distribution of event shape (D,).
        classifier: module; ``classifier(x)`` are the logits of q(y|x), (..., C).
        num_classes: C.
        num_labels: how many training images have a label.
        weight: of the term of the classifier.
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
        """Generate class and z; observe the images x, (B, *pixels), and the labels y, (B,), but for those of -1."""
        pyro.module("m2", self)
        known: Any = y >= 0
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", dist.Categorical(logits=x.new_zeros(self.num_classes)))
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self._with_class(z, c)), obs=x)
            with poutine.mask(mask=known):
                pyro.sample("y", dist.Categorical(logits=_certain(c, self.num_classes, x)), obs=y.clamp(min=0))

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Enumerate the class of the images x, (B, *pixels), that is not given by their labels y, (B,), and infer z."""
        pyro.module("m2", self)
        known = y >= 0
        logits = self.classifier(x)
        given = _certain(y.clamp(min=0), self.num_classes, x)
        with pyro.plate("data", x.shape[0]):
            hit = logits.log_softmax(-1).gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            # The loss subtracts what a guide adds.
            pyro.factor("classification", -self.weight * torch.where(known, hit, 0.0), has_rsample=True)
            of_class = dist.Categorical(logits=torch.where(known.unsqueeze(-1), given, logits))
            c = pyro.sample("c", of_class, infer={"enumerate": "parallel"})
            pyro.sample("z", self.posterior(self._with_class(self.features(x), c)))


def _certain(c: Tensor, num_classes: int, x: Tensor) -> Tensor:
    """Return the logits (..., C) of the one class c (...)."""
    return torch.where(one_hot(c, num_classes) == 1, x.new_zeros(()), -torch.inf)
