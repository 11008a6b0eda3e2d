r"""A VAE of tables as an estimator in the manner of scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pyro
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from pyro_vae import evaluate
from pyro_vae.config import Config
from pyro_vae.data import Numbers
from pyro_vae.errors import UserError, check_count
from pyro_vae.evaluate.likelihood.noise_by_row import NoiseByRow
from pyro_vae.runs import make_fit, prepare
from pyro_vae.trace.isolation import isolated_param_store, seed_rng

_ROWS_AT_ONCE = 100
_COUNTS = ("poisson", "negative-binomial")  # likelihoods of nonnegative integers


class VAEEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """Variational autoencoder for rows of a table, with scikit-learn's interface.

    Programs, networks and objectives are those of ``scripts/fit.py``, where the arguments are flags. The encoder
    standardizes its input, and densities are those of X in its own units. All computations are in float64. Neither the
    global param store of Pyro nor the global random generators change.

    Args:
        latent_dim: Number of latent units, D.
        prior: Prior p(z): ``"standard"``, ``"mixture"``, ``"nsf"`` and others; see ``config.CHOICES["prior"]``.
        posterior: Posterior q(z|x), e.g. ``"meanfield"`` or ``"full-rank"``.
        likelihood: Likelihood p(x|z): ``"gaussian"`` or ``"isotropic-gaussian"`` for real numbers, ``"poisson"`` or
            ``"negative-binomial"`` for counts.
        net: Networks of the encoder and the decoder, e.g. ``"mlp"`` or ``"linear"``.
        hidden_dim: Units of a hidden layer.
        objective: Objective of the fit, e.g. ``"elbo"`` or ``"iwae"``.
        num_particles: Particles of the objective.
        epochs: Number of epochs.
        batch_size: Rows of a training batch; all, if there are fewer.
        learning_rate: Learning rate of Adam.
        num_samples: Importance samples K of `score_samples`.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        random_state: Seed or generator of the weights, the order of the rows and all noise. With an integer, all
            results can be repeated.

    Attributes:
        seed_: Seed of the weights and all noise, drawn from `random_state`.
        program_: The fitted program, with ``model(x)`` and ``guide(x)``.
        elbo_: Mean ELBO of the training rows during each epoch, in nats, shape (epochs,).
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, if X had names that are strings.

    Example:
        >>> import numpy as np
        >>> from pyro_vae import VAEEstimator
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(200, 1)) @ [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(200, 3))
        >>> vae = VAEEstimator(latent_dim=1, epochs=200, random_state=0).fit(X)
        >>> bool(abs(np.corrcoef(vae.transform(X)[:, 0], X[:, 1])[0, 1]) > 0.99)
        True
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        prior: str = "standard",
        posterior: str = "meanfield",
        likelihood: str = "gaussian",
        net: str = "mlp",
        hidden_dim: int = 100,
        objective: str = "elbo",
        num_particles: int = 1,
        epochs: int = 100,
        batch_size: int = 100,
        learning_rate: float = 1e-3,
        num_samples: int = 1000,
        device: str = "cpu",
        random_state: Any = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.prior = prior
        self.posterior = posterior
        self.likelihood = likelihood
        self.net = net
        self.hidden_dim = hidden_dim
        self.objective = objective
        self.num_particles = num_particles
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.num_samples = num_samples
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the program to rows X (N, columns). y is ignored.

        Raises:
            ValueError: If an argument is invalid, a value is missing or infinite, there are fewer than two rows, a
                column of real numbers is constant, or counts are negative or not integers.
            NonFiniteError: If the loss or a gradient is non-finite.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        counts = self.likelihood in _COUNTS
        if counts and not ((X >= 0) & (np.round(X) == X)).all():
            raise UserError(f"likelihood={self.likelihood!r} needs counts, and X has negative or fractional values.")
        check_count("batch_size", self.batch_size, 1)
        self.seed_ = int(check_random_state(self.random_state).randint(2**31))
        arguments = {name: value for name, value in self.get_params().items() if name != "random_state"}
        config = Config(**arguments | {"batch_size": min(self.batch_size, len(X))}, seed=self.seed_).resolve()
        rows = _to_tensor(X, config.device)
        columns = tuple(map(str, getattr(self, "feature_names_in_", ())))
        numbers = Numbers("X", rows, rows[:1], rows[:1], columns=columns, counts=counts)
        with self._apart(rows, self.seed_):
            run = prepare(config, numbers.observed("none"))
            self.elbo_ = np.array([epoch.elbo for epoch in make_fit(run)], dtype=np.float64)
        self.program_ = run.program
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the posterior means of rows X (N, columns), shape (N, D)."""
        x = self._checked(X)
        with self._apart(x, self.seed_):
            means = evaluate.posterior_means(self.program_.guide, x, self.seed_)
        return means.cpu().numpy()

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the means of p(x|z) at latents X (N, D), shape (N, columns)."""
        check_is_fitted(self)
        z = _to_tensor(check_array(X, dtype=np.float64), self._device)
        if z.shape[1] != self.latent_dim:
            raise UserError(f"X has {z.shape[1]} columns; the latents have {self.latent_dim}.")
        with torch.no_grad():
            return self.program_.likelihood(z).mean.double().cpu().numpy()

    def score_samples(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Estimate log p(x) of each row by importance sampling: a lower bound in expectation.

        The noise of a row depends on its values and the seed only, not on the other rows; equal rows have equal scores.

        Args:
            X: Rows (N, columns).
            return_std: Whether to return the standard error of each estimate as well.

        Returns:
            log p(x) in nats, of a density per unit of X for real numbers, shape (N,), and its standard errors (N,). A
            standard error is unreliable where k-hat is large; `evaluate.score` gives it.

        Raises:
            ValueError: If log p(x) is undefined, e.g. with ``posterior="point-mass"`` or ``prior="flat"``.
        """
        x, backend = self._checked(X), NoiseByRow(self.seed_, self.num_samples)
        with self._apart(x, self.seed_):
            scores = evaluate.score(
                self.program_.model,
                self.program_.guide,
                x,
                self.num_samples,
                batch_size=_ROWS_AT_ONCE,
                seed=self.seed_,
                backend=backend,
            )
        if scores.reason:
            raise UserError(f"log p(x) is undefined: {scores.reason}.")
        if return_std:
            return scores.log_likelihood, np.sqrt(scores.relative_variance)
        return scores.log_likelihood

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of log p(x) over rows X (N, columns), in nats. y is ignored."""
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows from p(x), shape (n_samples, columns); each call others, unless random_state is an integer."""
        check_is_fitted(self)
        check_count("n_samples", n_samples, 1)
        seed = int(check_random_state(random_state).randint(2**31))
        template = torch.zeros(n_samples, self.n_features_in_, device=self._device)
        with self._apart(template, seed):
            values = evaluate.sample_prior(self.program_.model, template, seed)
            if values is None:
                raise UserError(f"prior={self.prior!r} is improper, so that it cannot be sampled.")
            drawn = evaluate.decode_sample(self.program_.model, template, values, seed)
        return drawn.double().cpu().numpy()

    @property
    def _n_features_out(self) -> int:  # for get_feature_names_out
        return self.latent_dim

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.program_.parameters()).device
        return device

    def _checked(self, X: Any) -> Tensor:
        """Return rows as the program observes them."""
        check_is_fitted(self)
        return _to_tensor(validate_data(self, X, dtype=np.float64, reset=False), self._device)

    @staticmethod
    @contextmanager
    def _apart(x: Tensor, seed: int) -> Iterator[None]:
        """Work in float64 with an empty param store and generators of its own; the global ones are restored on exit."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with isolated_param_store(), seed_rng(x, seed):
                pyro.clear_param_store()
                yield
        finally:
            torch.set_default_dtype(default)


def _to_tensor(X: np.ndarray, device: torch.device | str) -> Tensor:
    """Return a copy of an array of any memory layout."""
    return torch.tensor(np.require(X, requirements="C"), dtype=torch.float64, device=device)
