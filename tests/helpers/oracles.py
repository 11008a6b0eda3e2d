"""Programs whose log p(x) is known in closed form or by quadrature."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class LinearGaussian:
    """z ~ N(0, I_D), x|z ~ N(W z + b, s2 I): p(x) = N(b, W W' + s2 I), and the posterior is Gaussian.

    The guide is the exact posterior with its covariance multiplied by `variance_ratio`.
    """

    def __init__(self, latent_dim: int, data_dim: int = 7, noise: float = 0.5, variance_ratio: float = 1.0) -> None:
        generator = torch.Generator("cpu").manual_seed(latent_dim)
        draw = torch.randn(data_dim, latent_dim + 1, generator=generator, device="cpu")
        draw = draw.to(torch.get_default_device())
        self.weight, self.bias = draw[:, :-1], draw[:, -1]
        self.noise = noise
        self.latent_dim = latent_dim
        self.variance_ratio = variance_ratio
        precision = torch.eye(latent_dim) + self.weight.T @ self.weight / noise
        self.covariance = precision.inverse()
        self.scale_tril = torch.linalg.cholesky(self.covariance * variance_ratio)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            loc = z @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(loc, math.sqrt(self.noise)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.MultivariateNormal(self.posterior_mean(x), scale_tril=self.scale_tril))

    def posterior_mean(self, x: Tensor) -> Tensor:
        return (x - self.bias) @ self.weight @ self.covariance / self.noise

    def simulate(self, num_images: int) -> Tensor:
        z = torch.randn(num_images, self.latent_dim)
        noise = torch.randn(num_images, len(self.bias)) * math.sqrt(self.noise)
        return z @ self.weight.T + self.bias + noise

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.noise * torch.eye(len(self.bias))
        return dist.MultivariateNormal(self.bias, covariance).log_prob(x)

    @property
    def gap(self) -> float:
        """Return KL(q

        p(z|x)) = log p(x) - ELBO.
        """
        ratio = self.variance_ratio
        return self.latent_dim / 2 * (ratio - 1 - math.log(ratio))


class BernoulliDecoder(nn.Module):
    """z ~ N(0, I_D), x|z ~ Bernoulli(net(z)), with a guide that ignores x and is wider than the posterior."""

    def __init__(self, latent_dim: int, data_dim: int = 6) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.net = nn.Sequential(nn.Linear(latent_dim, 8), nn.Tanh(), nn.Linear(8, data_dim))
        for parameter in self.net.parameters():
            nn.init.normal_(parameter)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.net)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.2).to_event(1))

    def log_evidence(self, x: Tensor, points: int = 401, half_width: float = 8.0) -> Tensor:
        """Return log p(x) by the trapezoidal rule on a grid, which converges geometrically for such integrands."""
        axis = torch.linspace(-half_width, half_width, points)
        grid = torch.cartesian_prod(*[axis] * self.latent_dim).view(-1, self.latent_dim)
        with torch.no_grad():
            log_prior = dist.Normal(0.0, 1.0).log_prob(grid).sum(1)
            logits = self.net(grid)
            log_likelihood = -nn.functional.softplus(logits).sum(1) + x @ logits.T
        step = self.latent_dim * math.log(axis[1] - axis[0])
        return (log_prior + log_likelihood).logsumexp(1) + step


class RowsAlone:
    """A decoder of 3x2 images that takes only rows, `view(x.shape[0], ...)`, with a guide that takes particles."""

    @staticmethod
    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.view(x.shape[0], 3, 2)).to_event(2), obs=x)

    @staticmethod
    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(3 + x.flatten(-2), 0.3).to_event(1))


class Waiting:
    """rate ~ Gamma(a, b), x_1, ..., x_5 | rate ~ Exponential(rate): a positive latent, p(x) in closed form."""

    a, b = 2.0, 3.0

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            rate = pyro.sample("rate", dist.Gamma(self.a, self.b))
            pyro.sample("x", dist.Exponential(rate.unsqueeze(-1).expand(*rate.shape, 5)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("rate", dist.LogNormal(-x.mean(1).log(), 0.8))

    def log_evidence(self, x: Tensor) -> Tensor:
        total = x.sum(1)
        gammas = math.lgamma(self.a + 5) - math.lgamma(self.a)
        return gammas + self.a * math.log(self.b) - (self.a + 5) * (self.b + total).log()


class Bounded:
    """z ~ Uniform(-1, 1), x|z ~ N(z, 0.8): a guide N(0.4 x, scale) reaches beyond the support of the prior."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Uniform(-torch.ones(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.8).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.4 * x, self.scale).to_event(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        likelihood = dist.Normal(x, 0.8)
        return ((likelihood.cdf(torch.ones(1)) - likelihood.cdf(-torch.ones(1))) / 2).log().squeeze(-1)

    def inside(self, x: Tensor) -> Tensor:
        q = dist.Normal(0.4 * x, self.scale)
        return (q.cdf(torch.ones(1)) - q.cdf(-torch.ones(1))).squeeze(-1)
