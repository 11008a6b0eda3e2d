r"""Annealing paths: from a distribution that can be drawn to the posterior of each image, through f_b(z).

    f_b(z) = f_0(z)^(1-b) p(x, z)^b,    0 = b_0 < b_1 < ... < b_T = 1,

with f_0 the prior p(z) or the guide q(z|x), both normalized, so that the integral of f_1 over that of f_0 is p(x).
Densities are over the unconstrained latents u (K, B, D).
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace import (
    Batch,
    Data,
    Graph,
    GraphError,
    ParticleTrace,
    Program,
    UnconstrainedSpace,
    choose_layout,
    choose_layouts,
    describe_traces,
    draw,
    log_density,
    trace_model_and_guide,
    trace_particles,
)
from pyro_vae.trace.isolation import seed_rng

_LOG = logging.getLogger("pyro_vae")


def sigmoid(num_temperatures: int) -> Tensor:
    """Return b_0, ..., b_T, denser near both ends: the schedule of Grosse, Ghahramani, Adams (2015)."""
    b = torch.sigmoid(torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64, device="cpu"))
    return (b - b[0]) / (b[-1] - b[0])


def linear(num_temperatures: int) -> Tensor:
    """Return b_0, ..., b_T, evenly spaced."""
    return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64, device="cpu")


SCHEDULES = {"sigmoid": sigmoid, "linear": linear}
STARTS = ("guide", "prior")


class PathState(NamedTuple):
    """Particles of a path: u (K, B, D), log f_0 and log p(x, u) (K, B) in nats, and their gradients (K, B, D)."""

    u: Tensor
    log_start: Tensor
    log_joint: Tensor
    start_gradient: Tensor
    joint_gradient: Tensor

    def log_density(self, b: float) -> Tensor:
        """Return log f_b (K, B)."""
        return (1 - b) * self.log_start + b * self.log_joint

    def gradient(self, b: float) -> Tensor:
        """Return the gradient of log f_b (K, B, D)."""
        return (1 - b) * self.start_gradient + b * self.joint_gradient

    def where(self, chosen: Tensor, other: PathState) -> PathState:
        """Return these particles where chosen (K, B), and the others elsewhere."""
        pairs = zip(self, other, strict=True)
        return PathState(*(torch.where(chosen.unsqueeze(-1) if p.dim() == 3 else chosen, p, q) for p, q in pairs))


class AnnealingPath:
    """The path of a program for a batch of images, read inside `trace.read_only`.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        batch: images (B, ...), or the arguments of the programs.
        start: one of `STARTS`, what f_0 is.
        compiled: evaluate by a compiled graph. What cannot be compiled runs as it is, and a line of the log says why.

    Raises:
        ValueError: a latent site is discrete, shared by all images or a point mass, there is none, the guide has no
            density at given values, or as `trace_model_and_guide`.
    """

    def __init__(self, model: Program, guide: Program, batch: Data, start: str, *, compiled: bool = False) -> None:
        self.model, self.guide, self.batch, self.start = model, guide, Batch.of(batch), start
        self._graph = Graph(self._ends, model, guide) if compiled else None
        self._compared = False
        with torch.no_grad():
            p, q = trace_model_and_guide(model, guide, self.batch, 1)
            enumerated = q.layout.enumerated  # summed out, like what the guide does not draw
            self.names = [name for name in p.latents if name not in q.enumerated]
            if not self.names:
                raise UserError(
                    "The program has no latent site that is drawn: its log p(x) is known, and there is nothing to "
                    "anneal."
                )
            description = describe_traces(guide, self.batch, p, q)
            if description.not_per_image_reason:
                raise UserError(description.not_per_image_reason)
            if description.no_latent_density:
                raise UserError(f"There is nothing to anneal: {description.no_density_reason}.")
            self.space = UnconstrainedSpace(p, self.names)
            self._check_supports(p)
            layouts = choose_layouts(model, guide, self.batch, 2)
            self.layout = layouts.model._replace(summed=layouts.model.summed + enumerated)
            self.guide_layout = layouts.guide._replace(summed=enumerated, enumerated=())
            if start == "guide":
                self._check_guide(q)

    def _check_supports(self, p: ParticleTrace) -> None:
        """Refuse a latent whose support moves with another latent, which one map cannot follow."""
        u = self.space.join(p.get_values(self.names))
        moved = UnconstrainedSpace(trace_particles(self.model, self.batch, 1), self.names).split(u)[0]
        for name, value in p.get_values(self.names).items():
            if not torch.allclose(value, moved[name], rtol=1e-3, atol=1e-3):
                raise UserError(f"The support of latent site {name!r} moves with other latents: it cannot be annealed.")

    def _check_guide(self, q: ParticleTrace) -> None:
        """Refuse a guide that is no fixed density: one of auxiliary draws, or that draws other noise at every call."""
        scores = []
        for seed in (0, 1):
            with seed_rng(self.batch.x, seed):
                try:
                    values = {name: value[:1] for name, value in q.get_values(self.names).items()}
                    scores.append(torch.stack(list(log_density(self.guide, self.batch, values).values())).sum(0))
                except (KeyError, NotImplementedError) as error:
                    raise UserError(
                        f"The guide has no density at values that it has not drawn ({type(error).__name__}): anneal "
                        'from the prior, start="prior".'
                    ) from error
        if not torch.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4):
            raise UserError(
                "The density of the guide changes from call to call, by noise that is none of its sites (a denoising "
                'encoder, functional dropout): anneal from the prior, start="prior".'
            )

    def draw(self, num_samples: int) -> Tensor:
        """Draw u (K, B, D) from f_0.

        Raises:
            ValueError: a draw lies so near the edge of its support that the precision of the program does not hold it.
        """
        with torch.no_grad():
            if self.start == "guide":
                layout = self.guide_layout._replace(summed=())
                values = draw(self.guide, self.batch, num_samples, layout)[0]
                values = {name: values[name] for name in self.names}
            else:
                layout = choose_layout(self.model, self.batch, num_samples, data=self.layout.data)
                drawn = trace_particles(self.model, self.batch, num_samples, layout=layout)
                values = drawn.get_values(self.names)
            u = self.space.join(values)
            self._check_round_trip(values, u)
            return u

    def _check_round_trip(self, values: dict[str, Tensor], u: Tensor) -> None:
        """Hold the density at u against that at the values which u came from."""
        before = sum(log_density(self.model, self.batch, values, self.layout).values())
        after = sum(log_density(self.model, self.batch, self.space.split(u)[0], self.layout).values())
        change = torch.as_tensor(before - after).abs() - 1e-4 * torch.as_tensor(before).abs()
        if not (u.isfinite().all() and (change <= 1e-2).all()):
            raise UserError(
                "Latents lie so near the edge of their support that their precision does not hold them: build the "
                "program in float64, torch.set_default_dtype(torch.float64), to anneal it."
            )

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u) (K, B) in nats, differentiable."""
        _, sites, log_det = self._scored(u)
        return sum(sites.values()) + log_det

    def _scored(self, u: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return the latents at u, the densities of the model's sites there, and the Jacobian."""
        values, log_det = self.space.split(u)
        return values, log_density(self.model, self.batch, values, self.layout), log_det

    def evaluate(self, u: Tensor) -> PathState:
        """Evaluate both ends of the path at u."""
        u = u.detach()
        if self._graph is not None:
            try:
                ends: Any = (self._graph if self._compared else self._graph.compare)(u)[1]
                self._compared = True
                return PathState(u, *ends)
            except GraphError as error:
                self._graph = None
                _LOG.warning("Annealing is not compiled: %s. Pyro runs the program every time.", error)
        return PathState(u, *self._ends(u)[1])

    def _ends(self, u: Tensor) -> tuple[None, tuple[Tensor, ...]]:
        """Return log f_0 and log p(x, u) (K, B) and their gradients (K, B, D)."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            values, sites, log_det = self._scored(u)
            log_joint = sum(sites.values()) + log_det
            if self.start == "guide":
                log_start = sum(log_density(self.guide, self.batch, values, self.guide_layout).values()) + log_det
            else:
                log_start = sum(sites[name] for name in values) + log_det
            (start_gradient,) = torch.autograd.grad(log_start.sum(), u, retain_graph=True)
            (joint_gradient,) = torch.autograd.grad(log_joint.sum(), u)
        return None, (log_start.detach(), log_joint.detach(), start_gradient, joint_gradient)
