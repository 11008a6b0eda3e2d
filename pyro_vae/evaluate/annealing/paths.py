r"""Annealing paths from a tractable initial distribution to the posterior of each image.

    f_b(z) = f_0(z)^(1-b) p(x, z)^b,    0 = b_0 < b_1 < ... < b_T = 1,

where f_0 is the prior p(z), the guide q(z|x), or a Gaussian that `pilot` has fitted to the posterior of each image. All
are normalized, so that the integral of f_1 divided by that of f_0 is p(x). Densities are over the unconstrained latents
u (K, B, D) and include the Jacobian of the map from u to z.

A guide may reach beyond the support S of the prior, where p(x, z) = 0. The path is then one of densities on S: f_0 is
q(z|x) restricted to S, whose integral is q(S|x), the probability that a sample of the guide is in S. Samples outside S
get weight 0, and the others have f_1 / f_0 with mean p(x) / q(S|x), so that the mean over all samples is again p(x).
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate.annealing.checks import check_guide, check_round_trip, check_supports
from pyro_vae.evaluate.annealing.gaussians import Gaussian
from pyro_vae.evaluate.annealing.states import PathState, StartingParticles
from pyro_vae.trace import (
    Batch,
    Data,
    Graph,
    GraphError,
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
from pyro_vae.trace.enumeration import count_states

_LOG = logging.getLogger("pyro_vae")


STARTS = ("gaussian", "guide", "prior")


class AnnealingPath:
    """Annealing path of a program for a batch of images. Use it inside `trace.read_only`.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        batch: Images (B, ...), a tuple of positional arguments, or a `Batch`.
        start: Initial distribution f_0, one of `STARTS`. For ``gaussian``, samples are those of the guide until
            `starting_from` is called.
        compiled: Evaluate densities with a compiled graph. A program that cannot be compiled runs eagerly, and the
            reason is logged.

    Raises:
        ValueError: A sampled latent site is discrete, shared by all images or a point mass, or there is none; the guide
            has no density at given values; or as `trace_model_and_guide`.
    """

    def __init__(self, model: Program, guide: Program, batch: Data, start: str, *, compiled: bool = False) -> None:
        self.model, self.guide, self.batch, self.start = model, guide, Batch.of(batch), start
        self._gaussian: Gaussian | None = None
        # The first two results of `_evaluate_ends` are log-densities, the others gradients.
        self._graph = Graph(self._evaluate_ends, model, guide, in_nats=slice(2)) if compiled else None
        self._densities = Graph(self._log_ends, model, guide, in_nats=slice(None)) if compiled else None
        self._compared: set[Graph] = set()
        self._counts: Counter[str] = Counter()  # shared by the paths that `starting_from` returns
        with torch.no_grad():
            p, q = trace_model_and_guide(model, guide, self.batch, 1)
            enumerated = q.layout.enumerated  # summed out, as are latents that the guide does not sample
            self.names = [name for name in p.latents if name not in q.enumerated]
            if not self.names:
                raise UserError("The program has no sampled latent site: its log p(x) is exact and needs no annealing.")
            description = describe_traces(guide, self.batch, p, q)
            if description.not_per_image_reason:
                raise UserError(description.not_per_image_reason)
            if description.no_latent_density:
                raise UserError(f"The program cannot be annealed: {description.no_density_reason}.")
            self.space = UnconstrainedSpace(p, self.names)
            check_supports(self, p)
            layouts = choose_layouts(model, guide, self.batch, 2)
            self.layout = layouts.model._replace(summed=layouts.model.summed + enumerated)
            self.guide_layout = layouts.guide._replace(summed=enumerated, enumerated=())
            if start == "guide":
                check_guide(self, q)

    def starting_from(self, gaussian: Gaussian) -> AnnealingPath:
        """Return this path with a Gaussian over u as f_0."""
        path = copy.copy(self)
        path._gaussian = gaussian
        return path

    def draw(self, num_samples: int) -> StartingParticles:
        """Draw K samples of f_0.

        Raises:
            ValueError: A sample lies too near the edge of its support for the precision of the program.
        """
        with torch.no_grad():
            if self._gaussian is not None:
                values = self.space.split(self._gaussian.draw(num_samples))[0]
            elif self.start != "prior":
                layout = self.guide_layout._replace(summed=())
                values = draw(self.guide, self.batch, num_samples, layout)[0]
                values = {name: values[name] for name in self.names}
            else:
                layout = choose_layout(self.model, self.batch, num_samples, data=self.layout.data)
                drawn = trace_particles(self.model, self.batch, num_samples, layout=layout)
                values = drawn.get_values(self.names)
            inside, u = self.space.contains(values), self.space.join(values)
            check_round_trip(self, values, u, inside)
            log_w = torch.zeros(inside.shape, dtype=torch.float64, device=u.device)
            if inside.all():
                return StartingParticles(u, log_w)
            first = u[inside.int().argmax(0), torch.arange(inside.shape[1], device=u.device)]  # inside, if any is
            replacement = torch.where(inside.any(0).unsqueeze(-1), first, 0.0)
            return StartingParticles(
                torch.where(inside.unsqueeze(-1), u, replacement), log_w.masked_fill(~inside, -torch.inf)
            )

    @property
    def num_states(self) -> int:
        """Number of joint values of the discrete latents that are summed out for each particle."""
        return count_states(self.layout.summed)

    @property
    def evaluations(self) -> int:
        """Number of evaluations of log p(x, u) for each image so far, with or without gradients."""
        return self._counts["particles"]

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u) (K, B) in nats, with gradients."""
        _, sites, log_det = self._score_model(u)
        return sum(sites.values()) + log_det

    def _score_model(self, u: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return the latents at u, the log-densities of the model's sites, and the log-determinant of the Jacobian."""
        values, log_det = self.space.split(u)
        return values, log_density(self.model, self.batch, values, self.layout), log_det

    def evaluate(self, u: Tensor) -> PathState:
        """Evaluate log f_0, log p(x, u) and their gradients at u."""
        state = self._evaluate_program(u.detach())
        if self._gaussian is None:
            return state
        log_start, start_gradient = self._gaussian.evaluate(state.u)
        return state._replace(log_start=log_start, start_gradient=start_gradient)

    def _evaluate_program(self, u: Tensor) -> PathState:
        """Evaluate a path between densities of the program; that from a Gaussian is evaluated as if from the prior."""
        self._counts["particles"] += len(u)
        if self._graph is not None:
            try:
                return PathState(u, *self._run_graph(self._graph, u))
            except GraphError as error:
                self._graph = None
                _LOG.warning("Annealing is not compiled: %s. The program runs eagerly.", error)
        return PathState(u, *self._evaluate_ends(u)[1])

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log f_0 and log p(x, u) (K, B) in nats, without gradients."""
        self._counts["particles"] += len(u)
        with torch.no_grad():
            log_start, log_joint = self._log_densities_of_program(u)
            return (log_start if self._gaussian is None else self._gaussian.evaluate(u)[0]), log_joint

    def _log_densities_of_program(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the densities of a path as `_evaluate_program` does."""
        if self._densities is not None:
            try:
                log_start, log_joint = self._run_graph(self._densities, u)
                return log_start, log_joint
            except GraphError as error:
                self._densities = None
                _LOG.warning("Densities are not compiled: %s. The program runs eagerly.", error)
        return self._log_ends(u)[1]

    def _run_graph(self, graph: Graph, u: Tensor) -> Any:
        """Run a graph. The first call also runs the program, to detect values that the graph has frozen."""
        if graph in self._compared:
            return graph(u)[1]
        self._compared.add(graph)
        return graph.compare(u)[1]

    def _log_ends(self, u: Tensor) -> tuple[None, tuple[Tensor, Tensor]]:
        """Return log f_0 and log p(x, u) (K, B), after the None that `Graph` expects."""
        values, sites, log_det = self._score_model(u)
        log_joint = sum(sites.values()) + log_det
        if self.start == "guide":
            log_start = sum(log_density(self.guide, self.batch, values, self.guide_layout).values()) + log_det
        else:
            log_start = sum(sites[name] for name in values) + log_det
        return None, (log_start, log_joint)

    def _evaluate_ends(self, u: Tensor) -> tuple[None, tuple[Tensor, ...]]:
        """Return log f_0 and log p(x, u) (K, B) and their gradients (K, B, D), after the None that `Graph` expects."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_start, log_joint = self._log_ends(u)[1]
            (start_gradient,) = torch.autograd.grad(log_start.sum(), u, retain_graph=True)
            (joint_gradient,) = torch.autograd.grad(log_joint.sum(), u)
        return None, (log_start.detach(), log_joint.detach(), start_gradient, joint_gradient)
