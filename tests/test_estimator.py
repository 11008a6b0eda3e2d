"""VAEEstimator: scikit-learn's own checks, closed forms, and nothing global that changes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyro_vae as pv

pytestmark = pytest.mark.host


def rank_two(num_rows: int, seed: int) -> np.ndarray:
    """Return rows of five columns that vary in two directions, of different scales, and little noise."""
    rng = np.random.default_rng(seed)
    directions = np.array([[3.0, 0.0, 1.0, 2.0, 0.0], [0.0, 1.0, 1.0, -1.0, 0.2]])
    return rng.normal(size=(num_rows, 2)) @ directions + 0.3 * rng.normal(size=(num_rows, 5)) + 7.0


@parametrize_with_checks([pv.VAEEstimator(latent_dim=1, hidden_dim=10, epochs=2, num_samples=10)])
@pytest.mark.filterwarnings("ignore:Skipping check check_array_api_input:UserWarning")  # SCIPY_ARRAY_API is not set
def test_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def test_scores_of_a_linear_program_match_the_closed_form() -> None:
    """Probabilistic PCA, where p(x) is a Gaussian with the covariance W W' + S: 30 rows within 6 s.e."""
    X = rank_two(300, 0)
    vae = pv.VAEEstimator(
        2, net="linear", posterior="full-rank", likelihood="isotropic-gaussian", epochs=300, learning_rate=0.02,
        batch_size=300, num_samples=3000, random_state=0,
    ).fit(X)  # fmt: skip
    ends = vae.inverse_transform(np.vstack([np.zeros(2), np.eye(2)]))
    loadings = ends[1:] - ends[0]
    noise = vae.program_.likelihood(torch.zeros(1, 2, dtype=torch.float64)).stddev.detach().numpy()[0]
    exact = multivariate_normal(ends[0], loadings.T @ loadings + np.diag(noise**2)).logpdf(X[:30])
    found, error = vae.score_samples(X[:30], return_std=True)
    assert (np.abs(found - exact) < 6 * error + 1e-6).all()
    assert error.mean() < 0.03
    assert vae.score(X[:30]) == pytest.approx(found.mean())
    assert vae.elbo_[-1] < vae.score(X) < vae.elbo_[-1] + 1
    # Posterior means explain all but the noise; 20,000 draws, whose normalized covariances have an error of 0.01.
    assert (np.square(X - vae.inverse_transform(vae.transform(X))).mean(0) < 1.1 * noise**2).all()
    covariance = loadings.T @ loadings + np.diag(noise**2)
    scales = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(np.cov(vae.sample(20_000, random_state=1).T) / scales, covariance / scales, atol=0.06)


def test_copies_agree_and_nothing_global_changes() -> None:
    X = rank_two(60, 1)
    vae = pv.VAEEstimator(2, prior="mixture", epochs=3, num_samples=20, random_state=3)
    pyro.clear_param_store()
    pyro.param("vae$$$prior.logits", torch.full((50,), 9.0))  # a name that the program uses
    state, generator, dtype = pyro.get_param_store().get_state(), torch.get_rng_state(), torch.get_default_dtype()
    scores = vae.fit(X).score_samples(X)
    np.testing.assert_array_equal(clone(vae).fit(X).score_samples(X), scores)
    reversed_scores = pickle.loads(pickle.dumps(vae)).score_samples(X[::-1])
    np.testing.assert_allclose(reversed_scores, scores[::-1], rtol=1e-12)
    assert (pv.VAEEstimator(**vae.get_params() | {"random_state": 4}).fit(X).score_samples(X) != scores).all()
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_default_dtype() == dtype
    after = pyro.get_param_store().get_state()
    assert after["params"].keys() == state["params"].keys()
    assert torch.equal(after["params"]["vae$$$prior.logits"], torch.full((50,), 9.0))


def test_grid_search_finds_the_number_of_latents_in_a_pipeline() -> None:
    """Two directions: a second unit is worth more than a nat on held-out rows of scikit-learn's iris."""
    rows = load_iris(as_frame=True).data.sample(frac=1.0, random_state=0)
    vae = pv.VAEEstimator(net="linear", epochs=60, learning_rate=0.02, num_samples=100, random_state=0)
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), vae)
    search = GridSearchCV(pipeline, {"vaeestimator__latent_dim": [1, 2]}, cv=2, error_score="raise").fit(rows)
    assert search.best_params_ == {"vaeestimator__latent_dim": 2}
    names = search.best_estimator_.get_feature_names_out()
    assert list(names) == ["vaeestimator0", "vaeestimator1"]


def test_counts_have_count_likelihoods() -> None:
    X = np.random.default_rng(0).poisson([1.0, 20.0, 5.0], size=(80, 3))
    vae = pv.VAEEstimator(1, likelihood="poisson", epochs=50, learning_rate=0.01, num_samples=50, random_state=0).fit(X)
    drawn = vae.sample(2000, random_state=0)
    assert (drawn >= 0).all()
    assert (drawn == drawn.round()).all()
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), rtol=0.25)
    with pytest.raises(ValueError, match="needs counts, and X has negative or fractional values"):
        clone(vae).fit(X - 0.5)
    with pytest.raises(ValueError, match="column 1 is 3 in every training row"):
        pv.VAEEstimator().fit(np.column_stack([X[:, 0], np.full(80, 3.0)]))
    with pytest.raises(ValueError, match="Unknown prior 'none'"):
        pv.VAEEstimator(prior="none").fit(X)


def test_programs_without_a_density_have_codes_but_no_scores() -> None:
    X = rank_two(50, 2)
    vae = pv.VAEEstimator(prior="flat", posterior="point-mass", epochs=2, random_state=0).fit(X)
    assert np.isfinite(vae.inverse_transform(vae.transform(X))).all()
    with pytest.raises(ValueError, match="is undefined: "):
        vae.score_samples(X)
    with pytest.raises(ValueError, match="prior='flat' is improper"):
        vae.sample()
