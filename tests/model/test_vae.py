"""Programs and their networks: any leading dimensions, any image size, the prior in one line."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from helpers.programs import images, small_vae
from torch import nn

from pyro_vae.config import components
from pyro_vae.infer import ELBO
from pyro_vae.model import nets
from pyro_vae.model.priors.mixture import GaussianMixture


@pytest.mark.parametrize("leading", [(), (3,), (4, 3)])
def test_components_support_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    vae = small_vae()
    x, z = torch.rand(*leading, 3, 2), torch.randn(*leading, 2)
    one_by_one = [vae.posterior(image).mean for image in x.view(-1, 3, 2)]
    torch.testing.assert_close(vae.posterior(x).mean.view(-1, 2), torch.stack(one_by_one))
    one_by_one = [vae.likelihood(code).mean for code in z.view(-1, 2)]
    torch.testing.assert_close(vae.likelihood(z).mean.view(-1, 3, 2), torch.stack(one_by_one))


def test_mean_field_rate_is_the_analytic_kl() -> None:
    vae, x = small_vae(), images(3)
    q = vae.posterior(x)
    analytic = torch.distributions.kl_divergence(q, vae.prior().expand(q.batch_shape))
    z = q.sample((50_000,))
    sampled = q.log_prob(z) - vae.prior().log_prob(z)
    assert ((sampled.mean(0) - analytic).abs() < 4 * sampled.std(0) / math.sqrt(50_000)).all()  # 2e-4 in all


def test_images_of_another_shape_are_rejected_with_one_line() -> None:
    vae = small_vae()
    with pytest.raises(ValueError, match=r"x has shape \(5, 6\); the model expects \(\*, 3, 2\)"):
        vae.guide(torch.zeros(5, 6))


def test_prior_is_in_one_line_of_the_program() -> None:
    """The swap shown in the README: the model samples z from prior(), and from nothing else."""
    vae = small_vae()
    vae.prior = GaussianMixture(2, 1)
    with torch.no_grad():
        vae.prior.loc.fill_(40.0)
    trace = pyro.poutine.trace(vae.model).get_trace(images(50))
    assert trace.nodes["z"]["value"].mean().item() == pytest.approx(40, abs=1)


def test_learned_prior_is_trained_with_the_rest() -> None:
    vae = small_vae()
    vae.prior = GaussianMixture(2, 3)
    ELBO(2).loss_and_grads(vae.model, vae.guide, images(5))
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


NETS = sorted(components.NETS)


def perturbed(net: nn.Module) -> nn.Module:
    """Move a network away from its initialization, at which residual branches are zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.to(torch.get_default_device())


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (32, 32), (5, 7), (3, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize("name", NETS)
def test_networks_support_any_leading_dimensions(name: str, shape: tuple[int, ...]) -> None:
    """Single images and codes give the same results as in a batch; every parameter has a gradient."""
    family = components.NETS[name](shape, 6)
    for net, event, result in (
        (perturbed(family.encoder(3)), shape, (3,)),
        (perturbed(family.decoder(3, 2)), (3,), (2, *shape)),
    ):
        value = torch.randn(2, 4, *event)
        found = net(value)
        one_by_one = torch.stack([net(single) for single in value.flatten(0, 1)])
        torch.testing.assert_close(found, one_by_one.view(2, 4, *result))
        found.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("shape", [(9, 7), (3, 9, 7)])
@pytest.mark.parametrize("name", NETS)
def test_every_pixel_reaches_the_code_and_every_unit_each_pixel(name: str, shape: tuple[int, ...]) -> None:
    """Neither down- nor upsampling drops a pixel of an odd-sized image, or a color."""
    family = components.NETS[name](shape, 16)
    x = torch.randn(*shape, requires_grad=True)
    perturbed(family.encoder(5))(x).square().sum().backward()
    assert (x.grad != 0).all()
    z = torch.randn(5)
    decoder = perturbed(family.decoder(5, 1))
    assert (decoder(z) != decoder(z + torch.randn(5))).all()


def test_residual_branches_start_at_zero() -> None:
    family = components.NETS["resnet"]((8, 8), 6)
    encoder, x = family.encoder(3), torch.randn(2, 8, 8)
    before = encoder(x)
    branches = [module for module in encoder.modules() if hasattr(module, "second")]
    assert len(branches) == 4
    for branch in branches:
        nn.init.zeros_(branch.first.weight)
    torch.testing.assert_close(encoder(x), before)


def test_linear_network_is_linear() -> None:
    family = components.NETS["linear"]((3, 2), 16)
    decoder, encoder = family.decoder(2, 1), family.encoder(4)
    z, x = torch.randn(2, 2), torch.randn(2, 3, 2)
    torch.testing.assert_close(decoder(2 * z[0] - z[1]), 2 * decoder(z[0]) - decoder(z[1]))
    torch.testing.assert_close(encoder(2 * x[0] - x[1]), 2 * encoder(x[0]) - encoder(x[1]))  # the initial bias is 0


def test_gated_layer_is_value_times_gate() -> None:
    layer, h = nets.Gated(3, 2), torch.randn(5, 3)
    value = h @ layer.value.weight.T + layer.value.bias
    gate = 1 / (1 + (-(h @ layer.gate.weight.T + layer.gate.bias)).exp())
    torch.testing.assert_close(layer(h), value * gate)


def test_convolutions_reject_inputs_without_height_and_width() -> None:
    with pytest.raises(ValueError, match="use --net mlp"):
        components.NETS["conv"]((784,), 6)
