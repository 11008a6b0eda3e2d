"""Programs with classes: the mixture with an explicit class, and images with labels."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from helpers.calls import TINY, inside
from torch import Tensor

from pyro_vae import ELBO, IWAE, VAE
from pyro_vae.config import Config
from pyro_vae.config.saved import read_config
from pyro_vae.data import Batches, mask_labels
from pyro_vae.evaluate import discrete_values, log_weight_terms, posterior_probs
from pyro_vae.instruments.classes import measure_classes
from pyro_vae.instruments.generated import sample_prior_grid
from pyro_vae.model import CVAE, GMVAE, M2, likelihoods, nets, posteriors
from pyro_vae.model.priors.mixture import GaussianMixture
from pyro_vae.model.priors.standard import StandardNormal
from pyro_vae.trace import Batch

CLASSES, UNITS = 4, 3


def parts() -> tuple[GaussianMixture, likelihoods.Bernoulli, posteriors.MeanField]:
    family = nets.Dense((2, 3), 5)
    pixels = torch.randint(0, 256, (20, 2, 3), dtype=torch.uint8)
    prior = GaussianMixture(UNITS, CLASSES)
    with torch.no_grad():
        prior.loc.mul_(15)
        prior.logits.normal_()
        prior.raw_scale.add_(0.3 * torch.randn(CLASSES, UNITS))
    likelihood = likelihoods.Bernoulli(partial(family.decoder, UNITS), pixels)
    return prior, likelihood, posteriors.MeanField(family.encoder, UNITS)


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full((5, 2, 3), 0.5))


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("objective", [ELBO, IWAE])
def test_gmvae_trains_like_the_vae_with_the_same_mixture(
    objective: type[ELBO] | type[IWAE], num_particles: int, x: Tensor
) -> None:
    both = parts()
    found = []
    for build in (VAE, GMVAE):
        program = build(*copy.deepcopy(both))
        bound = objective(num_particles)
        bound.bounds(program.model, program.guide, x)  # the layout is probed on the first call
        pyro.set_rng_seed(0)
        value, elbo = bound.bounds(program.model, program.guide, x)
        found.append((value, elbo, torch.autograd.grad(value.sum(), list(program.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_gmvae_scores_like_the_vae_with_the_same_mixture(x: Tensor) -> None:
    prior, likelihood, posterior = parts()
    vae, gmvae = VAE(prior, likelihood, posterior), GMVAE(prior, likelihood, posterior)
    found = [log_weight_terms(program.model, program.guide, x, 200, seed=0) for program in (vae, gmvae)]
    torch.testing.assert_close(found[0][:3], found[1][:3], rtol=1e-11, atol=1e-11)


def test_class_posterior_is_the_mean_responsibility(x: Tensor) -> None:
    # p(c|x) = E[p(c|z)] under the posterior, estimated with a wide guide: 5.5 s.e. for 40 numbers, below 1e-5.
    prior, likelihood, _ = parts()

    def posterior(x: Tensor) -> pyro.distributions.TorchDistribution:
        return pyro.distributions.Normal(torch.zeros(len(x), UNITS), 3.0).to_event(1)

    gmvae = GMVAE(prior, likelihood, posterior)  # type: ignore[arg-type]
    with torch.no_grad():
        z = posterior(x).sample((20_000,))
        log_w = likelihood(z).log_prob(x) + prior().log_prob(z) - posterior(x).log_prob(z)
        each = torch.stack([prior.component(torch.tensor(c)).log_prob(z) for c in range(CLASSES)])
        shares = (each + prior.logits.log_softmax(0).view(-1, 1, 1)).softmax(0).double()
        weights = log_w.double().softmax(0)
        right = (weights * shares).sum(1).T
        spread = (weights.square() * (shares - right.T.unsqueeze(1)).square()).sum(1).sqrt().T
    for seed in range(2):
        probs = posterior_probs(gmvae.model, gmvae.guide, x, 20_000, seed=seed)["c"]
        torch.testing.assert_close(probs.sum(1), torch.ones(5, dtype=torch.float64))
        assert ((probs - right).abs() < 5.5 * math.sqrt(2) * spread + 1e-6).all()


def test_decoder_of_gmvae_runs_once_for_all_classes(x: Tensor) -> None:
    gmvae = GMVAE(*parts())
    bound = ELBO(3)
    bound.bounds(gmvae.model, gmvae.guide, x)
    rows = []
    handle = gmvae.likelihood.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    bound.bounds(gmvae.model, gmvae.guide, x)  # the second use probes the layouts again
    rows.clear()
    bound.bounds(gmvae.model, gmvae.guide, x)
    handle.remove()
    assert rows == [3 * len(x)]


def test_pictures_have_a_row_for_each_class(x: Tensor) -> None:
    gmvae = GMVAE(*parts())
    values = discrete_values(gmvae.model, gmvae.guide, x)
    assert values["c"].tolist() == list(range(CLASSES))
    like, latents = sample_prior_grid(gmvae, x, 6, seed=0)
    assert latents is not None
    assert len(like) == 6 * CLASSES
    assert latents["c"][0].tolist() == [c for c in range(CLASSES) for _ in range(6)]
    # z of each row around the mean of its component: 6 draws of 3 units, 5.5 s.e., false alarms below 1e-6.
    z = latents["z"][0].unflatten(0, (CLASSES, 6))
    scale = gmvae.prior.component(torch.arange(CLASSES)).base_dist.scale.detach()
    assert ((z.mean(1) - gmvae.prior.loc).abs() < 5.5 * scale / math.sqrt(6)).all()


def test_purity_matches_the_confusion_matrix() -> None:
    # Well separated clusters, identified by the images: label 0 has two of them, labels 1 and 2 share one.
    prior, _, _ = parts()

    class Apart:
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", prior.classes())
                pyro.sample("x", pyro.distributions.Normal(20.0 * c, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            """Empty guide."""

    clusters = torch.arange(CLASSES).repeat(25)
    labels = np.where(clusters < 2, 0, np.where(clusters < 3, 1, np.where(np.arange(100) % 8 == 3, 2, 1)))
    found = measure_classes(Apart(), 20.0 * clusters + 0.1 * torch.randn(100), labels, seed=0).numbers
    by_hand = [[int(((labels == a) & (clusters.cpu().numpy() == b)).sum()) for b in range(CLASSES)] for a in range(3)]
    assert found["confusion"] == by_hand
    assert found["purity"] == sum(map(max, zip(*by_hand, strict=True))) / 100


def test_cvae_is_one_vae_per_class(x: Tensor) -> None:
    family = nets.Dense((2, 3), 5)
    pixels = torch.randint(0, 256, (20, 2, 3), dtype=torch.uint8)
    program = CVAE(
        StandardNormal(UNITS),
        likelihoods.Bernoulli(partial(family.decoder, UNITS + CLASSES), pixels),
        family.encoder(5),
        posteriors.MeanField(lambda outputs: nets.MLP([5 + CLASSES, 5, outputs]), UNITS),
        CLASSES,
    )
    y = torch.tensor([0, 3, 1, 1, 2])
    found = log_weight_terms(program.model, program.guide, Batch(x, y), 50, seed=0)
    for c in range(CLASSES):  # with the class fixed, as if there were no other
        hot = torch.nn.functional.one_hot(torch.tensor(c), CLASSES).to(x)

        def with_class(h: Tensor, hot: Tensor = hot) -> Tensor:
            return torch.cat([h, hot.expand(*h.shape[:-1], -1)], -1)

        def likelihood(z: Tensor, add: object = with_class) -> object:
            return program.likelihood(add(z))  # type: ignore[operator]

        def posterior(x: Tensor, add: object = with_class) -> object:
            return program.posterior(add(program.features(x)))  # type: ignore[operator]

        alone = VAE(program.prior, likelihood, posterior)  # type: ignore[arg-type]
        right = log_weight_terms(alone.model, alone.guide, x, 50, seed=0)
        rows = y == c
        torch.testing.assert_close(found.log_weights[:, rows], right.log_weights[:, rows], rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("short_annealing")
@pytest.mark.parametrize("program", ["gmvae", "cvae", pytest.param("m2", marks=pytest.mark.slow)])
def test_programs_with_classes_run_through_every_script(program: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    inside("fit", *TINY, "--test-images", 10, "--program", program, "--out", run)
    inside("evaluate", run, "--ais-temperatures", 5, "--chains", 2, "--local-vi-steps", 2, "--sbc-images", 4)
    inside("sample", run)
    numbers = json.loads((run / "evaluation" / "summary.json").read_text())
    assert ("classes" in numbers) == (program != "cvae")
    if program == "m2":
        assert numbers["classes"]["accuracy"] <= numbers["classes"]["purity"]
    if program != "cvae":
        assert sum(map(sum, numbers["classes"]["confusion"])) == 10
    for name in ("prior", "reconstructions", "traversals", "completions"):
        assert (run / "samples" / f"{name}.png").stat().st_size > 0


def m2(weight: float = 2.0) -> M2:
    family = nets.Dense((2, 3), 5)
    pixels = torch.randint(0, 256, (20, 2, 3), dtype=torch.uint8)
    return M2(
        StandardNormal(UNITS),
        likelihoods.Bernoulli(partial(family.decoder, UNITS + CLASSES), pixels),
        family.encoder(5),
        posteriors.MeanField(lambda outputs: nets.MLP([5 + CLASSES, 5, outputs]), UNITS),
        family.encoder(CLASSES),
        num_classes=CLASSES,
        num_labels=8,
        weight=weight,
    )


def test_loss_of_m2_matches_the_paper(x: Tensor) -> None:
    # J of Kingma et al., equations 6 to 9, for the same noise: z of image b in class c is in row (c, b).
    program, y = m2(), torch.tensor([-1, 2, -1, 0, -1])
    pyro.set_rng_seed(0)
    bound = ELBO()
    bound.bounds(program.model, program.guide, x, y)
    pyro.set_rng_seed(0)
    value, elbo = bound.bounds(program.model, program.guide, x, y)
    pyro.set_rng_seed(0)
    classes = torch.arange(CLASSES).view(-1, 1).expand(-1, 5)
    q = program.posterior(program._with_class(program.features(x), classes))
    z = q.base_dist.loc + q.base_dist.scale * torch.randn(CLASSES, 5, UNITS)
    of_class = (
        program.likelihood(program._with_class(z, classes)).log_prob(x)
        + program.prior().log_prob(z)
        - q.log_prob(z)
        - math.log(CLASSES)
    )  # minus L(x, y), (C, B)
    log_q = program.classifier(x).log_softmax(-1).T
    unlabelled = (log_q.exp() * (of_class - log_q)).sum(0)
    chosen = y.clamp(min=0).unsqueeze(0)
    labelled = of_class.gather(0, chosen)[0]
    right = torch.where(y >= 0, labelled, unlabelled)
    torch.testing.assert_close(elbo, right.detach().double(), rtol=1e-10, atol=1e-10)
    right = right + torch.where(y >= 0, program.weight * log_q.gather(0, chosen)[0], 0.0)
    torch.testing.assert_close(value, right.double(), rtol=1e-10, atol=1e-10)
    parameters = list(program.parameters())
    found, expected = (torch.autograd.grad(each.sum(), parameters) for each in (value, right))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_weights_of_m2_use_the_label_if_there_is_one(x: Tensor) -> None:
    program = m2()
    unknown = torch.full((5,), -1)
    whole = log_weight_terms(program.model, program.guide, (x, unknown), 4000, seed=0).log_weights
    each = [
        log_weight_terms(program.model, program.guide, (x, torch.full((5,), c)), 4000, seed=0).log_weights
        for c in range(CLASSES)
    ]
    # The noise is the same: the weights for a label are those of its class in the sum.
    torch.testing.assert_close(torch.stack(each).logsumexp(0), whole, rtol=1e-10, atol=1e-10)
    joint = torch.stack([weights.logsumexp(0) for weights in each], 1)
    probs = posterior_probs(program.model, program.guide, (x, unknown), 4000, seed=0)["c"]
    # Other noise: the two estimates of p(y|x) differ by the error of 4,000 draws of similar weights.
    torch.testing.assert_close(probs, joint.softmax(1), rtol=0, atol=0.1)


def test_few_labels_are_kept_per_class_and_occur_in_every_batch() -> None:
    labels = torch.tensor([0, 1, 2] * 20)
    kept = mask_labels(labels, 7)
    assert [(kept == each).sum().item() for each in range(3)] == [3, 2, 2]
    places = (kept >= 0).nonzero().flatten()
    assert torch.equal(kept[places], labels[places])
    pixels = torch.randint(0, 256, (60, 2, 3), dtype=torch.uint8)
    epoch = list(Batches(pixels, 20, 0, lambda pixels: pixels / 255, kept)(0))
    assert torch.cat([batch[:20] for batch in epoch]).sort().values.tolist() == list(range(60))
    assert all(len(batch) == 22 and (kept[batch[20:]] >= 0).all() for batch in epoch)
    assert len({tuple(batch[20:].tolist()) for batch in epoch}) > 1


def test_configuration_without_labels_is_read(tmp_path: Path) -> None:
    settings = Config(latent_dim=7)
    old = {name: value for name, value in settings.to_json().items() if name != "labels"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_config(tmp_path / "config.json") == settings
