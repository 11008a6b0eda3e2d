"""Lower precision: products round their factors and results to 8 bits, and all other operations are unaffected."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.programs import images, small_vae
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae.infer import ELBO, SVI, Optim
from pyro_vae.infer.precision import PRECISIONS, BFloat16Products
from pyro_vae.trace import trace_model_and_guide

PRODUCTS = {
    "linear": lambda a, b: functional.linear(a, b.mT),
    "matmul": torch.matmul,
    "operator": lambda a, b: a @ b,
    "method": lambda a, b: a.matmul(b),
    "mm": torch.mm,
    "module": lambda a, b: product_of(nn.Linear(len(b), b.shape[1], bias=False), a, b),
    "conv": lambda a, b: functional.conv1d(a.unsqueeze(2), b.mT.unsqueeze(2)).squeeze(2),
}


def product_of(layer: nn.Linear, a: Tensor, b: Tensor) -> Tensor:
    layer.weight.data = b.mT
    return layer(a).detach()


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_as_accurate_as_bfloat16(name: str) -> None:
    """Rounding two factors and the result to 8 bits has an error of at most 3 x 2^-9 times the magnitudes."""
    a, b = torch.randn(7, 20, dtype=torch.float32), torch.randn(20, 5, dtype=torch.float32)
    with BFloat16Products():
        found = PRODUCTS[name](a, b)
    assert found.dtype == torch.float32
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    error = (found.double() - exact).abs()
    assert (error <= 3.1 * 2**-9 * magnitude).all()
    assert (error > 1e-5).any()  # rounding took place


def test_float64_products_are_unchanged() -> None:
    a, b = torch.randn(7, 20, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64)
    with BFloat16Products():
        assert torch.equal(a @ b, torch.matmul(a, b))
    expected = a @ b
    with BFloat16Products():
        torch.testing.assert_close(a @ b, expected, rtol=1e-15, atol=1e-14)


def test_densities_are_computed_in_float32() -> None:
    """log q of the draws agrees with float64 for the same loc and scale: no bfloat16 in between."""
    torch.set_default_dtype(torch.float32)
    vae = small_vae()
    with BFloat16Products():
        _, q = trace_model_and_guide(vae.model, vae.guide, images(50), 20)
        found = q.log_probs()["z"]
    site = q.sites["z"]
    normal = site["fn"].base_dist
    exact = torch.distributions.Normal(normal.loc.double(), normal.scale.double()).log_prob(site["value"].double())
    torch.testing.assert_close(found, exact.sum(-1).view_as(found), rtol=0, atol=1e-4)


@pytest.mark.parametrize("graph", [None, "recorded"])
def test_bfloat16_steps_are_close_to_float32_steps(graph: str | None) -> None:
    """Gradients agree within a few per cent, the accuracy of 8 bits, but not exactly."""
    torch.set_default_dtype(torch.float32)
    found = {}
    for precision in ("float32", "bf16"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = small_vae()
        optim = Optim(torch.optim.SGD, {"lr": 1e-3})  # the change of the weights is the gradient
        svi = SVI(vae.model, vae.guide, optim, ELBO(5), execution=graph, precision=precision)
        svi.step(images(50))
        before = torch.cat([p.detach().flatten() for p in vae.parameters()])
        pyro.set_rng_seed(1)
        svi.step(images(50))
        found[precision] = torch.cat([p.detach().flatten() for p in vae.parameters()]) - before
    relative = (found["bf16"] - found["float32"]).norm() / found["float32"].norm()
    assert 1e-4 < relative < 0.05


def test_tf32_is_enabled_only_during_a_step() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with PRECISIONS["tf32"]():
        assert torch.get_float32_matmul_precision() == "high"
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_unknown_precision_is_rejected() -> None:
    vae = small_vae()
    with pytest.raises(ValueError, match="precision is 'fp8'; choose one of float32, tf32, bf16"):
        SVI(vae.model, vae.guide, Optim(torch.optim.Adam, {"lr": 0.01}), ELBO(), precision="fp8")
