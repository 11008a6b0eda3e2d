"""Traversals and interpolations of latents, for programs whose images are linear in them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from helpers.oracles import LinearGaussian
from torch import Tensor

from pyro_vae.evaluate import decode_units, interpolate, most_visible_units, traverse


def test_traversal_moves_one_unit_between_its_ends() -> None:
    base, low, high = torch.randn(4), torch.randn(4) - 5, torch.randn(4) + 5
    found = traverse(base, low, high, torch.tensor([2, 0]), 5)
    for row, unit in enumerate((2, 0)):
        others = [u for u in range(4) if u != unit]
        torch.testing.assert_close(found[row, :, unit], torch.linspace(float(low[unit]), float(high[unit]), 5))
        assert torch.equal(found[row][:, others], base[others].expand(5, 3))


def test_interpolation_is_linear_and_keeps_both_ends() -> None:
    first, second = torch.randn(3, 2), torch.randn(3, 2)
    found = interpolate(first, second, 4)
    for step in range(4):
        torch.testing.assert_close(found[:, step], first + step / 3 * (second - first))


def test_images_at_latents_are_decoded() -> None:
    """x = W z + b, for any leading dimensions."""
    program, units = LinearGaussian(3), torch.randn(2, 5, 3)
    images, what = decode_units(program.model, program.guide, torch.zeros(1, 7), units)
    assert what == "means"
    torch.testing.assert_close(images, units @ program.weight.T + program.bias)


def test_units_of_several_sites_are_concatenated_in_order() -> None:
    """x = (first_1, first_2, second): three units from two sites, one of them scalar."""

    def program(x: Tensor, obs: Tensor | None) -> None:
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            second = pyro.sample("second", dist.Normal(0.0, 1.0))
            if obs is not None:
                loc = torch.cat([first, second.unsqueeze(-1)], -1)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=obs)

    units = torch.randn(6, 3)
    images, _ = decode_units(lambda x: program(x, x), lambda x: program(x, None), torch.zeros(2, 3), units)
    torch.testing.assert_close(images, units)


def test_most_visible_units_have_the_longest_columns() -> None:
    program = LinearGaussian(4)
    program.weight = torch.eye(7)[:, :4] * torch.tensor([1.0, -3.0, 0.5, 2.0])
    base, low = torch.randn(4), torch.randn(4)
    high = low + torch.tensor([1.0, 1.0, 8.0, 1.0])  # changes of 1, 3, 4 and 2
    found = most_visible_units(program.model, program.guide, torch.zeros(1, 7), base, low, high, 3)
    assert found.tolist() == [2, 1, 3]
