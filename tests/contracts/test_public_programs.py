"""Programs like those that users of Pyro publish train as in stock Pyro, and are scored as by stock handlers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyro
import pytest
import torch
from helpers.public_programs import FACTORIES, Public, tutorial
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_vae import ELBO, SVI, Optim, log_weights, score
from pyro_vae.trace import Batch, CompiledBackend, read_only, trace_particles

ADAM = {"lr": 0.01}
SHARED = {"hierarchical": ["offset"]}


def fresh(name: str) -> Public:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return FACTORIES[name]()


def modules(program: Public) -> list[nn.Module]:
    return [getattr(part, "__self__", part) for part in (program.model, program.guide)]


def stock(program: Public) -> pyro.infer.SVI:
    return pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam(dict(ADAM)), Trace_ELBO())


def trained(program: Public, svi: pyro.infer.SVI, steps: int = 5) -> tuple[list[float], dict[str, Tensor]]:
    """Take steps; return the losses and everything that they changed, including the buffers of the modules."""
    pyro.set_rng_seed(1)
    batches = [program.batches[step % len(program.batches)] for step in range(steps)]
    losses = [float(svi.step(*args, **kwargs)) for args, kwargs in batches]
    buffers = {f"{i} {name}": b for i, part in enumerate(modules(program)) for name, b in part.named_buffers()}
    return losses, {name: value.detach().clone() for name, value in [*pyro.get_param_store().items(), *buffers.items()]}


@cache
def trained_by_stock_pyro(name: str) -> tuple[list[float], dict[str, Tensor]]:
    program = fresh(name)
    return trained(program, stock(program))


@pytest.mark.parametrize("graph", [None, "recorded", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FACTORIES)
def test_program_trains_as_in_stock_pyro(name: str, graph: str | None) -> None:
    expected_losses, expected = trained_by_stock_pyro(name)
    program = fresh(name)
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, ADAM), ELBO(), execution=graph)
    losses, found = trained(program, svi)
    double = torch.get_default_dtype() == torch.float64
    assert losses == pytest.approx(expected_losses, rel=1e-9 if double else 1e-5)
    tolerance = 0.0 if double and graph != "compiled" else 1e-5
    assert found.keys() == expected.keys()
    apart = {k: v for k, v in expected.items() if not torch.allclose(found[k], v, rtol=tolerance, atol=tolerance)}
    assert not apart


def reference(program: Public, batch: Batch, num_samples: int, *, joint: bool) -> Tensor:
    """Return log p - log q for the draws of seed 0 by stock handlers, one particle at a time: (K, B), or (K,) if joint.

    A site in two plates, (T, B) in Pyro, is drawn as (K, B, T). `Delta` sites are recomputed from the other draws.
    """
    args, kwargs = batch.args, batch.kwargs
    size = len((*args, *kwargs.values())[0])
    with torch.no_grad(), read_only(program.model, program.guide, x=batch, seed=0, validate=False):
        guided = trace_particles(program.guide, batch, num_samples)
        values = guided.get_values(guided.drawn)  # includes auxiliary sites
    for module in modules(program):
        module.eval()

    def density(trace: poutine.Trace) -> Tensor:
        total = torch.zeros(() if joint else size, dtype=torch.float64)
        for site in sites(trace).values():
            log_p = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"]).double()
            total += log_p.sum() if joint else log_p.reshape(-1, size).sum(0)
        return total

    rows = []
    with torch.no_grad():
        for k in range(num_samples):
            native = sites(poutine.trace(program.guide).get_trace(*args, **kwargs))
            drawn = {
                s: in_native_shape(values[s][k], site)
                for s, site in native.items()
                if not isinstance(base(site), Delta)
            }
            q = poutine.trace(poutine.condition(program.guide, drawn)).get_trace(*args, **kwargs)
            at = {s: site["value"] for s, site in sites(q).items() if not site["infer"].get("is_auxiliary")}
            for s in at.keys() & values.keys():
                torch.testing.assert_close(at[s], in_native_shape(values[s][k], native[s]))
            p = poutine.trace(poutine.condition(program.model, at)).get_trace(*args, **kwargs)
            rows.append(density(p) - density(q))
    return torch.stack(rows)


def sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    samples = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {n: site for n, site in samples.items() if not site_is_subsample(site) and not isinstance(site["fn"], Unit)}


def base(site: dict[str, Any]) -> Any:
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def in_native_shape(value: Tensor, site: dict[str, Any]) -> Tensor:
    plates = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return (value.transpose(0, 1) if len(plates) == 2 else value).reshape(site["value"].shape)


@pytest.mark.parametrize("name", FACTORIES)
def test_program_is_scored_as_by_stock_handlers(name: str) -> None:
    """After some training, in evaluation mode, without scales: those of an annealed step or a subsample are ignored."""
    program = fresh(name)
    trained(program, stock(program))
    double = torch.get_default_dtype() == torch.float64
    shared = {"shared": "sampled"} if name in SHARED else {}
    for args, kwargs in program.batches:
        batch = Batch(*args, **kwargs)
        for module in modules(program):
            module.train()
        found = log_weights(program.model, program.guide, batch, 3, seed=0, **shared)
        assert all(module.training for module in modules(program))
        expected = reference(program, batch, 3, joint=name in SHARED)
        torch.testing.assert_close(found, expected, rtol=1e-10 if double else 1e-4, atol=1e-10 if double else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_compiled_scores_agree_across_chunks_and_batches(name: str) -> None:
    program, backend = fresh(name), CompiledBackend()
    trained(program, stock(program))
    double = torch.get_default_dtype() == torch.float64
    for args, kwargs in program.batches:
        of: dict[str, Any] = {"x": Batch(*args, **kwargs), "num_samples": 60, "seed": 0, "chunk": 20}
        of |= {"shared": "sampled"} if name in SHARED else {}
        expected = log_weights(program.model, program.guide, **of)
        found = log_weights(program.model, program.guide, backend=backend, **of)
        torch.testing.assert_close(found, expected, rtol=1e-10 if double else 1e-4, atol=1e-10 if double else 1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_latent_shared_by_the_data_set_is_rejected_by_scores(name: str) -> None:
    program = fresh(name)
    (args, kwargs), *_ = program.batches
    for measure in (score, log_weights):
        with pytest.raises(ValueError, match=SHARED[name][0]):
            measure(program.model, program.guide, Batch(*args, **kwargs), 3, seed=0)


def test_batch_may_be_a_tensor_a_tuple_or_a_batch() -> None:
    program, pair = tutorial(), FACTORIES["conditional"]()
    (((x,), _), *_), (((image, y), _), *_) = program.batches, pair.batches
    of = {"num_samples": 3, "seed": 0}
    expected = log_weights(program.model, program.guide, Batch(x, annealing_factor=1.0), **of)
    assert torch.equal(log_weights(program.model, program.guide, x, **of), expected)
    assert torch.equal(log_weights(program.model, program.guide, (x,), **of), expected)
    expected = log_weights(pair.model, pair.guide, Batch(image, y=y), **of)
    assert torch.equal(log_weights(pair.model, pair.guide, (image, y), **of), expected)
    assert not torch.equal(log_weights(pair.model, pair.guide, (image, y.roll(1, 0)), **of), expected)
