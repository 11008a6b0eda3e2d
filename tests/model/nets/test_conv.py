"""Convolutional networks: by default as in earlier versions, for any image size, and trainable at any depth."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae.model import nets

HIDDEN, CODE = 24, 5


def by_hand(blocks: int, colors: int, quarter: tuple[int, int]) -> list[Tensor]:
    """Return the parameters of both networks as in earlier versions, for image sizes divisible by 4."""
    parts: list[nn.Module] = []

    def residuals(channels: int) -> None:
        for _ in range(blocks):
            parts.append(nn.Conv2d(channels, channels, 3))
            parts.append(nn.Conv2d(channels, channels, 3))
            for p in parts[-1].parameters():
                nn.init.zeros_(p)

    def linear(inputs: int, outputs: int) -> None:
        parts.append(nn.Linear(inputs, outputs))
        nn.init.xavier_uniform_(parts[-1].weight)
        nn.init.zeros_(parts[-1].bias)

    flat = 64 * math.prod(quarter)
    for inputs, outputs in ((colors, 32), (32, 64)):
        parts.append(nn.Conv2d(inputs, outputs, 3))
        residuals(outputs)
    linear(flat, HIDDEN)
    linear(HIDDEN, CODE)
    linear(CODE, HIDDEN)
    linear(HIDDEN, flat)
    residuals(64)
    parts.append(nn.ConvTranspose2d(64, 32, 3))
    residuals(32)
    parts.append(nn.ConvTranspose2d(32, 2 * colors, 3, bias=False))
    return [p.detach() for part in parts for p in part.parameters()]


@pytest.mark.parametrize(("kind", "blocks"), [(nets.Conv, 0), (nets.ResNet, 2)])
@pytest.mark.parametrize("shape", [(8, 12), (3, 32, 32)])
def test_defaults_are_those_of_earlier_versions(kind: type, blocks: int, shape: tuple[int, ...]) -> None:
    pyro.set_rng_seed(3)
    *colors, height, width = shape
    expected = by_hand(blocks, math.prod(colors), (height // 4, width // 4))
    pyro.set_rng_seed(3)
    family = kind(shape, HIDDEN)
    found = [p for net in (family.encoder(CODE), family.decoder(CODE, 2)) for p in net.parameters()]
    assert len(found) == len(expected)
    assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("shape", "widths", "smallest"),
    [
        ((8, 8), [32, 64], (2, 2)),
        ((63, 63), [32, 64], (16, 16)),
        ((64, 64), [32, 64, 128], (8, 8)),
        ((3, 20, 64), [32, 64, 128], (3, 8)),
        ((128, 100), [32, 64, 128, 256], (8, 7)),
        ((300, 511), [32, 64, 128, 256, 256], (10, 16)),
    ],
)
def test_larger_images_have_more_stages(shape: tuple[int, ...], widths: list[int], smallest: tuple[int, int]) -> None:
    family = nets.Conv(shape, HIDDEN)
    assert (family.widths, family.sizes[-1]) == (widths, smallest)


def test_first_width_may_exceed_the_limit_of_the_others() -> None:
    assert nets.Conv((128, 128), HIDDEN, width=100).widths == [100, 200, 256, 256]
    assert nets.Conv((128, 128), HIDDEN, width=300).widths == [300] * 4


# Each size up to 70, as a height or as a width; squares; and colors.
SHAPES = [(n, 71 - n)[:: (-1) ** n] for n in range(1, 36)] + [(1, 1), (2, 2), (64, 64), (3, 5, 7), (1, 31, 66)]


def with_softplus(net: nn.Module) -> nn.Module:
    """Replace rectifiers by softplus, whose gradient is never zero, so that gradients show every dependence."""
    for part in list(net.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.Softplus())
    return net


def test_every_pixel_and_every_unit_matters_for_any_size() -> None:
    """The code depends on each pixel, and each decoded pixel on every unit of the code."""
    for shape in SHAPES:
        family = nets.Conv(shape, 8, depth=1, width=2)
        x = torch.randn(2, *shape, requires_grad=True)
        code = with_softplus(family.encoder(CODE))(x)
        assert code.shape == (2, CODE)
        (seen,) = torch.autograd.grad(code.square().sum(), x)
        assert (seen != 0).all(), shape
        z = torch.randn(CODE)
        image, *moved = with_softplus(family.decoder(CODE, 2))(torch.cat([z[None], z + torch.eye(CODE)])).detach()
        assert image.shape == (2, *shape)
        assert all((other != image).all() for other in moved), shape


def mean_cross_entropy(nets_in_turn: list[nn.Module], x: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(nn.Sequential(*nets_in_turn)(x).squeeze(1), x)


def test_deep_residual_network_trains_from_the_start() -> None:
    """Other layers start with the gradients of a network without blocks, and the loss falls.

    Eight blocks at each of two resolutions, i.e. 64 convolutions in blocks; the step size is the default.
    """
    torch.set_default_dtype(torch.float32)
    family = nets.ResNet((3, 32, 32), 64, depth=8)
    both = [family.encoder(16), family.decoder(16, 1)]
    parameters = [p for net in both for p in net.parameters()]
    branches = [part for net in both for part in net.modules() if hasattr(part, "second")]
    assert len(branches) == 32
    x = (torch.rand(1, 3, 1, 1) + 0.3 * torch.rand(1, 3, 32, 32)).clamp(0, 1)

    shallow = [nn.Sequential(*(part for part in net.net if part not in branches)) for net in both]
    others = [p for net in shallow for p in net.parameters()]
    expected = torch.autograd.grad(mean_cross_entropy(shallow, x), others)
    torch.testing.assert_close(torch.autograd.grad(mean_cross_entropy(both, x), others), expected)
    norms = [g.norm() for g in torch.autograd.grad(mean_cross_entropy(both, x), [b.second.weight for b in branches])]
    assert 0 < min(norms) <= max(norms) < max(g.norm() for g in expected)

    optim = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(30):
        optim.zero_grad()
        loss = mean_cross_entropy(both, x)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in parameters)
        losses.append(loss.item())
        optim.step()
    assert losses[-1] < losses[0] - 0.01
    assert max(losses) < 30 * losses[0]  # without the factor for depth, the third is hundreds or more
