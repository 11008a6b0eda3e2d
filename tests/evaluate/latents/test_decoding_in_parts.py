"""Latents are drawn and decoded in parts, whose size depends on that of an image, and which give the same images."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.evaluate import decode_mean_or_sample, decode_sample, decode_units, sample_prior
from pyro_vae.evaluate.latents import decoding
from pyro_vae.trace import Batch

N, PIXELS = 7, 6


class Labeled:
    """z ~ N(0, 1), x ~ N(label + z w, 0.1): the mean of an image is determined by its label and its latents."""

    def __init__(self) -> None:
        self.w, self.rows = torch.randn(2, PIXELS), list[int]()

    def model(self, x: Tensor, label: Tensor) -> None:
        self.rows.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = (z @ self.w + label.unsqueeze(-1)).unflatten(-1, (2, 3))
            pyro.sample("x", dist.Normal(loc, 0.1).to_event(2), obs=x)

    def guide(self, x: Tensor, label: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


@pytest.fixture
def template() -> Batch:
    return Batch(torch.zeros(N, 2, 3), torch.arange(N) * 100.0)


@pytest.mark.parametrize("at_once", [1, 2, 3, N, 100])
def test_means_do_not_depend_on_the_parts(at_once: int, template: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_PIXELS", at_once * PIXELS)
    program, z = Labeled(), torch.randn(1, N, 2)
    means, kind = decode_mean_or_sample(program.model, template, {"z": z})
    assert kind == "means"
    torch.testing.assert_close(means, (z[0] @ program.w + template.args[1].unsqueeze(-1)).unflatten(-1, (2, 3)))
    assert max(program.rows) == min(at_once, N)


def test_first_part_is_that_of_a_single_one_and_later_ones_have_other_noise(
    template: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, z = Labeled(), torch.zeros(1, N, 2)
    drawn, prior = [], []
    for at_once in (N, 3):
        monkeypatch.setattr(decoding, "_PIXELS", at_once * PIXELS)
        drawn.append(decode_sample(program.model, template, {"z": z}, seed=0) - template.args[1].view(-1, 1, 1))
        values = sample_prior(program.model, template, seed=0)
        assert values is not None
        prior.append(values["z"][0])
    for whole, parts in (drawn, prior):
        assert whole.shape == parts.shape
        assert len(parts.unique(dim=0)) == N  # no noise is used twice
    assert prior[0].std() > 0.3  # not the zeros at which x is decoded
    again = sample_prior(program.model, template, seed=0)
    assert again is not None
    assert torch.equal(again["z"][0], prior[1])


def test_latents_that_are_given_stay_with_their_images(template: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_PIXELS", 2 * PIXELS)
    z = torch.randn(1, N, 2)
    values = sample_prior(Labeled().model, template, seed=0, given={"z": z})
    assert values is not None
    assert torch.equal(values["z"], z)


def test_large_images_are_decoded_a_few_at_a_time() -> None:
    """A grid of 225 images of 512 x 512 pixels, as `sample.py` shows for two latent units: four at once."""
    rows = []

    def model(x: Tensor) -> None:
        rows.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z.sum(-1)[..., None, None].expand(*z.shape[:-1], 512, 512)
            pyro.sample("x", dist.Delta(loc).to_event(2), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    decode_units(model, guide, torch.zeros(1, 512, 512), torch.randn(9, 2), seed=0)
    assert max(rows) == 4
