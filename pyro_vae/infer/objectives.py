r"""What is maximised: lower bounds on log p(x), each image its own, as Pyro ELBO objects.

With K particles z_k ~ q(z|x) and log w_k = log p(x, z_k) - log q(z_k|x), in nats,

    ELBO    E[ log w ]                                   <=  log p(x)
    IWAE    E[ log (1/K) sum_k w_k ]     ELBO  <=  IWAE  <=  log p(x)

Gradients are pathwise (reparameterized). The loss is minus the objective summed over the batch, the
convention of `pyro.infer.Trace_ELBO`, and nothing in a step waits for the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.trace import Program, Run, check_support, run_pair


class Objective(Trace_ELBO):
    """A pathwise objective that takes the place of `pyro.infer.Trace_ELBO` in any `pyro.infer.SVI`.

    Every sample site of model and guide stands in one data plate of size ``x.shape[0]`` at dim -1, so that
    each image has a bound of its own.

    Args:
        num_particles: K.
    """

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles is {num_particles}; it must be at least 1.")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)

    @abstractmethod
    def objective(self, log_w: Tensor) -> Tensor:
        """Map the log importance weights (K, B) to the objective of each image (B,), in nats."""

    def bounds(self, model: Program, guide: Program, x: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the objective and the ELBO of each image from the same particles.

        Args:
            model: program of p(x, z).
            guide: program of q(z|x).
            x: images, (B, ...).

        Returns:
            (objective (B,), ELBO (B,)) in nats; the ELBO carries no gradient.

        Raises:
            ValueError: a latent site has no reparameterized gradient, is scaled, is missing on one side, or
                stands outside the data plate; where Pyro's validation is on, data outside their support.
        """
        log_w = _log_weights(model, guide, x, self.num_particles)
        return self.objective(log_w), log_w.detach().mean(0)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the objective, summed over the batch, in nats; differentiable."""
        return -self.bounds(model, guide, *args, **kwargs)[0].sum()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the detached loss, after adding its gradients to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.detach()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs)


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x, z) - log q(z|x)], averaged over K particles.

    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114).
    """

    def objective(self, log_w: Tensor) -> Tensor:
        """Return the mean over particles."""
        return log_w.mean(0)


class IWAE(Objective):
    """The importance-weighted bound of each image, E_q[log (1/K) sum_k w_k].

    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016
    (https://arxiv.org/abs/1509.00519).
    """

    def objective(self, log_w: Tensor) -> Tensor:
        """Return the log of the mean weight."""
        return log_w.logsumexp(0) - math.log(log_w.shape[0])


def _log_weights(model: Program, guide: Program, x: Tensor, num_samples: int) -> Tensor:
    """Log importance weights (K, B) with pathwise gradients, float64."""
    p, q = run_pair(model, guide, x, num_samples)
    _check_sites(p, q)
    # Model before guide, the order of stock Pyro: gradients then add up in its order, to the same bits.
    log_p = p.log_probs()
    log_q = q.log_probs()
    return sum(log_p.values()) - torch.as_tensor(sum(log_q.values()))


def _check_sites(p: Run, q: Run) -> None:
    for name, site in (*p.sites.items(), *q.sites.items()):
        if isinstance(site["scale"], Tensor) or site["scale"] != 1:
            raise ValueError(
                f"Site {name!r} is scaled, and bounds of each image know no scale: remove poutine.scale, and give "
                "the data plate the size of the batch, x.shape[0]."
            )
    for name in q.values:
        kind = q.sites[name]["fn"]
        if torch.is_grad_enabled() and not kind.has_rsample:
            raise ValueError(
                f"Guide site {name!r} ({type(kind).__name__}) has no reparameterized sampler; use one that has."
            )
    if is_validation_enabled():
        check_support(p)
