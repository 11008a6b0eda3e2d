"""The Frechet distance in closed form, and features that separate classes."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch import Tensor

from pyro_vae.evaluate.features.frechet import frechet_distance, train_feature_network


def with_moments(mean: Tensor, covariance: Tensor, number: int = 50) -> Tensor:
    """Return points whose sample mean and covariance are exactly those given."""
    z = torch.randn(number, len(mean))
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov())).T
    return z @ torch.linalg.cholesky(covariance).T + mean


def a_covariance(dim: int) -> Tensor:
    root = torch.randn(dim, dim)
    return root @ root.T + 0.1 * torch.eye(dim)


def test_commuting_covariances_give_the_distance_of_standard_deviations() -> None:
    m, n = torch.randn(4), torch.randn(4)
    s, t = torch.rand(4) + 0.1, torch.rand(4) + 0.1
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    a, b = (with_moments(turn @ mean, turn @ sd.square().diag() @ turn.T) for mean, sd in ((m, s), (n, t)))
    expected = (m - n).square().sum() + (s - t).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_distance_matches_the_matrix_square_root() -> None:
    c, d = a_covariance(3), a_covariance(3)
    found = frechet_distance(with_moments(torch.zeros(3), c), with_moments(torch.ones(3), d))
    root = scipy.linalg.sqrtm((c @ d).cpu().numpy()).real
    assert found == pytest.approx(3 + float(c.trace() + d.trace()) - 2 * root.trace(), rel=1e-6)


def test_distance_of_singular_covariances_is_symmetric_and_zero_for_equal_moments() -> None:
    a, b = torch.randn(5, 8), torch.randn(6, 8)  # covariances without full rank
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least two images"):
        frechet_distance(a[:1], b)


def test_features_separate_bars_and_distinguish_them_from_noise() -> None:
    """Bright rows against bright columns: always classified correctly, and closer to other bars than to noise."""

    def bars(number: int) -> tuple[Tensor, Tensor]:
        classes, place = torch.randint(2, (number,)), torch.randint(8, (number,))
        rows = torch.nn.functional.one_hot(place, 8).to(torch.get_default_dtype()).unsqueeze(2).expand(-1, 8, 8)
        x = torch.where(classes.view(-1, 1, 1).bool(), rows, rows.transpose(1, 2))
        return (x + 0.1 * torch.randn_like(x)).clamp(0, 1), classes

    x, classes = bars(1000)
    before = torch.get_rng_state()
    net = train_feature_network(x, classes, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    test, answers = bars(500)
    assert net.accuracy(test, answers) == 1
    a, others, noise = (net.features(images) for images in (test, bars(500)[0], torch.rand(500, 8, 8)))
    assert 20 * frechet_distance(a, others) < frechet_distance(a, noise)
