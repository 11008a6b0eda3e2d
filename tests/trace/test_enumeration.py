"""Discrete latents that the guide does not sample are summed out: log p(x) against sums over all their values."""

from __future__ import annotations

from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.discrete import no_latents
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_vae import ELBO, IWAE, log_weights, score
from pyro_vae.infer.objectives import Renyi
from pyro_vae.trace import Batch, CompiledBackend, choose_layouts, log_density


class Classes(nn.Module):
    """A class with ten values, and Bernoulli pixels given it: log p(x) is a sum of ten terms."""

    def __init__(self) -> None:
        super().__init__()
        self.shares, self.logits = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(10, 5))

    def model(self, x: Tensor) -> None:
        pyro.module("classes", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.shares))
            pyro.sample("x", dist.Bernoulli(logits=self.logits[c]).to_event(1), obs=x)

    def log_evidence(self, x: Tensor) -> Tensor:
        pixels = dist.Bernoulli(logits=self.logits).log_prob(x.unsqueeze(1)).sum(-1)
        return (self.shares.log_softmax(0) + pixels).logsumexp(1)


class Bits(nn.Module):
    """Eight bits that switch the pixels: 256 joint values; as one event, or in a separate plate."""

    def __init__(self, plate: bool) -> None:
        super().__init__()
        self.plate = plate
        self.prior, self.weight = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 5))

    def model(self, x: Tensor) -> None:
        pyro.module("bits", self)
        data = pyro.plate("data", len(x), dim=-2 if self.plate else -1)
        if self.plate:
            with data, pyro.plate("places", 8, dim=-1):
                bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior))
            with data:
                pixels = dist.Bernoulli(logits=(bits @ self.weight).unsqueeze(-2)).to_event(1)
                pyro.sample("x", pixels, obs=x.unsqueeze(1))
        else:
            with data:
                bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=bits @ self.weight).to_event(1), obs=x)

    def log_evidence(self, x: Tensor) -> Tensor:
        bits = torch.tensor(list(product((0.0, 1.0), repeat=8)))
        pixels = dist.Bernoulli(logits=bits @ self.weight).log_prob(x.unsqueeze(1)).sum(-1)
        return (dist.Bernoulli(logits=self.prior).log_prob(bits).sum(-1) + pixels).logsumexp(1)


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full((4, 5), 0.5))


@pytest.mark.parametrize("build", [Classes, lambda: Bits(plate=False), lambda: Bits(plate=True)])
def test_program_with_only_discrete_latents_has_exact_evidence(build: Any, x: Tensor) -> None:
    program = build()
    right = program.log_evidence(x)
    torch.testing.assert_close(log_weights(program.model, no_latents, x, 3, seed=0), right.detach().expand(3, -1))
    compiled = log_weights(program.model, no_latents, x, 3, seed=0, backend=CompiledBackend())
    torch.testing.assert_close(compiled, right.detach().expand(3, -1))
    expected = torch.autograd.grad(right.sum(), list(program.parameters()))
    for objective in (ELBO(), ELBO(3), IWAE(3), Renyi(2)):
        value, elbo = objective.bounds(program.model, no_latents, x)
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(elbo, right.detach(), rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(value.sum(), list(program.parameters()))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Mixed:
    """A small random program: classes c and optionally d given c, latents z and optionally u, two observed sites."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cpu").to(torch.get_default_device())

        def flip() -> bool:
            return bool(torch.rand(1, generator=generator, device="cpu") < 0.5)

        self.classes = int(torch.randint(2, 5, (1,), generator=generator, device="cpu"))
        self.has_d, self.has_u, self.d_after_z, self.one_hot = flip(), flip(), flip(), flip()
        self.label_early = flip()
        self.c_logits, self.d_logits = draw(self.classes), draw(self.classes)
        self.z_loc, self.u_loc = draw(self.classes), draw(2)
        self.x_loc, self.y_logits = draw(self.classes, 3), draw(self.classes, 2)
        self.data = draw(3, 3), torch.tensor([0, 1, 1])
        self.z = draw(2, 3)
        self.u = draw(2, 3)

    @property
    def names(self) -> list[str]:
        return ["c", "d"] if self.has_d else ["c"]

    @property
    def latents(self) -> dict[str, Tensor]:
        return {"z": self.z, "u": self.u} if self.has_u else {"z": self.z}

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.one_hot:
                c = pyro.sample("c", dist.OneHotCategorical(logits=self.c_logits)).argmax(-1)
            else:
                c = pyro.sample("c", dist.Categorical(logits=self.c_logits))
            d = self._d(c) if self.has_d and not self.d_after_z else torch.zeros(())
            if self.label_early:
                pyro.sample("y", dist.Categorical(logits=self.y_logits[c]), obs=y)
            z = pyro.sample("z", dist.Normal(self.z_loc[c] + d, 0.7))
            d = self._d(c) if self.has_d and self.d_after_z else d
            u = pyro.sample("u", dist.Normal(self.u_loc[d.long()] + 0.3 * z, 1.2)) if self.has_u else z
            loc = self.x_loc[c] + z.unsqueeze(-1) * (1 + d).unsqueeze(-1) - u.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)
            if not self.label_early:
                pyro.sample("y", dist.Categorical(logits=self.y_logits[c]), obs=y)

    def _d(self, c: Tensor) -> Tensor:
        return pyro.sample("d", dist.Bernoulli(logits=self.d_logits[c]), infer={"enumerate": "parallel"})

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in self.latents:
                pyro.sample(name, dist.Normal(x.mean(-1), 1.5))

    def by_hand(self, observed: bool = True) -> Tensor:
        """Return log p(x, y, z) at the latents (2, 3), or log p(z), one value and one particle at a time."""
        x, y = self.data
        found = []
        for k in range(2):
            joint = []
            for values in product(range(self.classes), range(2) if self.has_d else (0,)):
                c = torch.full((3,), values[0])
                one_hot = nn.functional.one_hot(c, self.classes).to(x.dtype)
                given = {"c": one_hot if self.one_hot else c, "d": torch.full((3,), float(values[1]))}
                data = {name: value[k] for name, value in self.latents.items()} | given
                trace = poutine.trace(poutine.condition(self.model, data)).get_trace(x, y)
                trace.compute_log_prob()
                sites = [*self.names, *self.latents, *(["x", "y"] if observed else [])]
                joint.append(sum(trace.nodes[name]["log_prob"] for name in sites))
            found.append(torch.stack(joint).logsumexp(0))
        return torch.stack(found)


@pytest.mark.parametrize("seed", range(50))
def test_random_programs_match_the_sum_over_all_values(seed: int) -> None:
    program = Mixed(seed)
    sites = log_density(program.model, program.data, program.latents)
    assert set(sites) == {*program.latents, "x", "y"}
    right = program.by_hand()
    layout = choose_layouts(program.model, program.guide, Batch(*program.data), 2).model
    for kind in ("states", "particles", "rows", "singly"):
        again = log_density(program.model, program.data, program.latents, layout._replace(kind=kind))
        torch.testing.assert_close(again, sites, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(sites.values()), right.double(), rtol=1e-12, atol=1e-12)
    of_latents = sum(sites[name] for name in program.latents)
    torch.testing.assert_close(of_latents, program.by_hand(observed=False).double(), rtol=1e-12, atol=1e-12)


def test_masked_class_is_ignored() -> None:
    there = torch.tensor([True, False, True])
    loc = torch.tensor([-1.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=there):
                c = pyro.sample("c", dist.Bernoulli(0.2))
            pyro.sample("x", dist.Normal(torch.where(there, loc[c.long()], 0.5), 1.0), obs=x)

    x = torch.tensor([0.0, 1.0, 2.0])
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.8, 0.2])), dist.Normal(loc, 1.0))
    right = torch.where(there, mixture.log_prob(x), dist.Normal(0.5, 1.0).log_prob(x))
    torch.testing.assert_close(log_weights(model, no_latents, x, 1)[0], right.double(), rtol=1e-12, atol=1e-12)


def test_common_scale_of_all_sites_multiplies_the_loss() -> None:
    program = Classes()
    x = torch.bernoulli(torch.full((4, 5), 0.5))
    scaled = poutine.scale(program.model, scale=0.25)
    value, elbo = ELBO().bounds(scaled, no_latents, x)
    torch.testing.assert_close(value, 0.25 * program.log_evidence(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(elbo, program.log_evidence(x).detach(), rtol=1e-12, atol=1e-12)


class Relaxed(nn.Module):
    """A one-hot class that the guide relaxes, with a straight-through gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.classify, self.logits = nn.Linear(5, 3), nn.Linear(3, 5)

    def model(self, x: Tensor) -> None:
        pyro.module("relaxed", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(y)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("relaxed", self)
        with pyro.plate("data", len(x)):
            logits = self.classify(x)
            relaxed = dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.7), logits=logits)
            pyro.sample("y", relaxed)


def test_relaxed_class_trains_as_in_stock_pyro_and_has_no_weights(x: Tensor) -> None:
    program = Relaxed()
    found = []
    for loss in (Trace_ELBO().differentiable_loss, ELBO().differentiable_loss):
        pyro.set_rng_seed(0)
        value = loss(program.model, program.guide, x)
        found.append((torch.as_tensor(value).double(), torch.autograd.grad(value, list(program.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    # A probability divided by a density is not a weight: it would change with the temperature.
    scores = score(program.model, program.guide, x, 10, seed=0)
    assert scores.reason is not None
    assert "relaxation" in scores.reason
    assert log_weights(program.model, program.guide, x, 10).isnan().all()
