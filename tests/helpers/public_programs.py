"""Programs like those that users of Pyro publish, small, each as a factory of new weights and batches.

They are written for stock Pyro and do not use this package. Every second batch differs from the first in all arguments
of the program, so that a value wrongly frozen at the first batch shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
import zuko
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn.functional import softmax, softplus
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

BATCH, PIXELS, HIDDEN, Z_DIM, LABELS, STEPS = 8, 6, 10, 2, 3, 4


class Public(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    batches: list[tuple[tuple[Any, ...], dict[str, Any]]]


def binary(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full((BATCH, *shape), 0.5))


def positional(*batches: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return [(batch, {}) for batch in batches]


class Gaussian(nn.Module):
    """A network that returns loc and scale of a normal distribution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, HIDDEN)
        self.loc, self.log_scale = nn.Linear(HIDDEN, outputs), nn.Linear(HIDDEN, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = softplus(self.hidden(x))
        return self.loc(h), self.log_scale(h).exp()


def decoder(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, outputs))


class Tutorial(nn.Module):
    """Images (B, 3, 4), flattened by the program, and a KL divergence weighted by a keyword argument of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Gaussian(12, Z_DIM), nn.Sequential(decoder(Z_DIM, 12), nn.Sigmoid())

    def model(self, x: Tensor, annealing_factor: float = 1.0) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = x.new_zeros(x.shape[0], Z_DIM), x.new_ones(x.shape[0], Z_DIM)
            with poutine.scale(scale=annealing_factor):
                z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, 12))
            return loc_img

    def guide(self, x: Tensor, annealing_factor: float = 1.0) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]), poutine.scale(scale=annealing_factor):
            z_loc, z_scale = self.encoder(x.reshape(-1, 12))
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def tutorial() -> Public:
    vae = Tutorial()
    return Public(vae.model, vae.guide, positional((binary(3, 4),), (binary(3, 4),)))


def annealed() -> Public:
    vae = Tutorial()
    return Public(vae.model, vae.guide, [((binary(3, 4),), {"annealing_factor": factor}) for factor in (0.3, 0.6)])


class Conditional(nn.Module):
    """p(z|y) p(x|z, y), with the label concatenated to the latents by `torch.cat`."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.encoder = Gaussian(LABELS, Z_DIM), Gaussian(PIXELS + LABELS, Z_DIM)
        self.decoder = decoder(Z_DIM + LABELS, PIXELS)

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(*self.prior(y)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(torch.cat([z, y], -1))).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(torch.cat([x, y], -1))).to_event(1))


def one_hot() -> Tensor:
    return torch.eye(LABELS)[torch.randint(LABELS, (BATCH,))]


def conditional() -> Public:
    vae = Conditional()
    return Public(vae.model, vae.guide, positional((binary(PIXELS), one_hot()), (binary(PIXELS), one_hot())))


class Labelled(nn.Module):
    """M2 with observed labels, in a plate without a size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_z, self.decoder = Gaussian(PIXELS + LABELS, Z_DIM), decoder(Z_DIM + LABELS, PIXELS)

    def model(self, xs: Tensor, ys: Tensor) -> None:
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        with pyro.plate("data"):
            prior = dist.Normal(xs.new_zeros(batch_size, Z_DIM), xs.new_ones(batch_size, Z_DIM))
            zs = pyro.sample("z", prior.to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(batch_size, LABELS) / LABELS), obs=ys)
            loc = torch.sigmoid(self.decoder(torch.cat((zs, ys), -1)))
            pyro.sample("x", dist.Bernoulli(loc).to_event(1), obs=xs)

    def guide(self, xs: Tensor, ys: Tensor) -> None:
        with pyro.plate("data"):
            loc, scale = self.encoder_z(torch.cat((xs, ys), -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def labelled() -> Public:
    vae = Labelled()
    return Public(vae.model, vae.guide, positional((binary(PIXELS), one_hot()), (binary(PIXELS), one_hot())))


class Markov(nn.Module):
    """Sequences (B, T, F) of unequal lengths: p(z_t|z_{t-1}) p(x_t|z_t), and a guide that reads them backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.transition, self.emitter = Gaussian(Z_DIM, Z_DIM), nn.Linear(Z_DIM, PIXELS)
        self.rnn = nn.GRU(PIXELS, HIDDEN, batch_first=True)
        self.to_hidden, self.combiner = nn.Linear(Z_DIM, HIDDEN), Gaussian(HIDDEN, Z_DIM)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(Z_DIM)), nn.Parameter(torch.zeros(Z_DIM))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, HIDDEN))

    def combined(self, z: Tensor, h: Tensor) -> dist.Distribution:
        loc, scale = self.combiner(0.5 * (torch.tanh(self.to_hidden(z)) + h))
        return dist.Normal(loc, scale)


class Masked(Markov):
    """Time steps beyond the end of a sequence are masked in the distributions."""

    def model(self, mini_batch: Tensor, mini_batch_mask: Tensor) -> None:
        pyro.module("dmm", self)
        z = self.z_0.expand(mini_batch.size(0), Z_DIM)
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.size(1) + 1)):
                here = mini_batch_mask[:, t - 1 : t]
                z = pyro.sample(f"z_{t}", dist.Normal(*self.transition(z)).mask(here).to_event(1))
                x = dist.Bernoulli(logits=self.emitter(z)).mask(here).to_event(1)
                pyro.sample(f"obs_x_{t}", x, obs=mini_batch[:, t - 1, :])

    def guide(self, mini_batch: Tensor, mini_batch_mask: Tensor) -> None:
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, mini_batch.size(0), HIDDEN).contiguous()
        h = self.rnn((mini_batch * mini_batch_mask[..., None]).flip(1), h_0)[0].flip(1)
        z = self.z_q_0.expand(mini_batch.size(0), Z_DIM)
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.size(1) + 1)):
                q = self.combined(z, h[:, t - 1, :])
                z = pyro.sample(f"z_{t}", q.mask(mini_batch_mask[:, t - 1 : t]).to_event(1))


class Packed(Markov):
    """Time steps are masked by a handler, and the guide packs the sequences by their lengths."""

    def model(self, sequences: Tensor, lengths: Tensor) -> None:
        pyro.module("dmm", self)
        z = self.z_0.expand(len(sequences), Z_DIM)
        with pyro.plate("sequences", len(sequences)):
            for t in pyro.markov(range(sequences.size(1))):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(*self.transition(z)).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emitter(z)).to_event(1), obs=sequences[:, t])

    def guide(self, sequences: Tensor, lengths: Tensor) -> None:
        pyro.module("dmm", self)
        packed = pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=sequences.size(1))
        z = self.z_q_0.expand(len(sequences), Z_DIM)
        with pyro.plate("sequences", len(sequences)):
            for t in pyro.markov(range(sequences.size(1))):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", self.combined(z, h[:, t]).to_event(1))


def lengths() -> Tensor:
    return torch.cat([torch.tensor([STEPS]), torch.randint(1, STEPS + 1, (BATCH - 1,))])


def masked() -> Public:
    dmm = Masked()
    masks = [torch.arange(STEPS) < lengths()[:, None] for _ in range(2)]
    batches = [((), {"mini_batch": binary(STEPS, PIXELS), "mini_batch_mask": mask}) for mask in masks]
    return Public(dmm.model, dmm.guide, batches)


def packed() -> Public:
    dmm = Packed()
    return Public(dmm.model, dmm.guide, [((binary(STEPS, PIXELS),), {"lengths": lengths()}) for _ in range(2)])


class FlowPrior(nn.Module):
    """A learned prior, one of Pyro's transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.flow = Gaussian(PIXELS, Z_DIM), decoder(Z_DIM, PIXELS), self.make_flow()

    def make_flow(self) -> nn.Module:
        return T.spline_coupling(Z_DIM, hidden_dims=[HIDDEN])

    def prior(self, x: Tensor) -> Any:
        base = dist.Normal(x.new_zeros(Z_DIM), x.new_ones(Z_DIM)).to_event(1)
        return dist.TransformedDistribution(base, [self.flow])

    def model(self, x: Tensor) -> None:
        pyro.module("flow", self.flow)
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


class AutoregressivePrior(FlowPrior):
    """A prior whose inverse processes the latents one by one."""

    def make_flow(self) -> nn.Module:
        return T.affine_autoregressive(Z_DIM, [HIDDEN])


class ZukoPrior(FlowPrior):
    """A prior that is a flow of zuko's."""

    def make_flow(self) -> nn.Module:
        return zuko.flows.NSF(Z_DIM, transforms=1, hidden_features=[HIDDEN])

    def prior(self, x: Tensor) -> Any:
        return ZukoToPyro(self.flow())


def flow_prior(program: type[FlowPrior] = FlowPrior) -> Public:
    vae = program()
    return Public(vae.model, vae.guide, positional((torch.randn(BATCH, PIXELS),), (torch.randn(BATCH, PIXELS),)))


def autoregressive_prior() -> Public:
    return flow_prior(AutoregressivePrior)


def zuko_prior() -> Public:
    return flow_prior(ZukoPrior)


class Topics(nn.Module):
    """ProdLDA with as many words as documents, so that taking the words from dim 1 of (K, B, words) raises no error."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.loc, self.log_var = nn.Linear(BATCH, HIDDEN), nn.Linear(HIDDEN, 3), nn.Linear(HIDDEN, 3)
        self.bn_loc, self.bn_log_var = nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3, affine=False)
        self.beta, self.bn = nn.Linear(3, BATCH, bias=False), nn.BatchNorm1d(BATCH, affine=False)
        self.drop = nn.Dropout(0.2)

    def model(self, docs: Tensor) -> None:
        pyro.module("topics", self)
        with pyro.plate("documents", docs.shape[0]):
            logtheta_loc, logtheta_scale = docs.new_zeros(docs.shape[0], 3), docs.new_ones(docs.shape[0], 3)
            logtheta = pyro.sample("logtheta", dist.Normal(logtheta_loc, logtheta_scale).to_event(1))
            theta = softmax(logtheta, -1)
            words = softmax(self.bn(self.beta(self.drop(theta))), dim=1)
            total_count = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total_count, words), obs=docs)

    def guide(self, docs: Tensor) -> None:
        pyro.module("topics", self)
        with pyro.plate("documents", docs.shape[0]):
            h = self.drop(softplus(self.fc1(docs)))
            loc, scale = self.bn_loc(self.loc(h)), (0.5 * self.bn_log_var(self.log_var(h))).exp()
            pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))


def topics() -> Public:
    vae = Topics()
    return Public(vae.model, vae.guide, positional(*[(torch.rand(BATCH, BATCH).mul(5).floor(),) for _ in range(2)]))


class Counts(nn.Module):
    """Gene counts: negative binomial, with a latent log-library whose prior moments are arguments of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.z_encoder, self.l_encoder = Gaussian(PIXELS, Z_DIM), Gaussian(PIXELS, 1)
        self.decoder = nn.Sequential(decoder(Z_DIM, PIXELS), nn.Softmax(-1))

    def model(self, x: Tensor, library: Tensor) -> None:
        pyro.module("scvi", self)
        theta = pyro.param("inverse_dispersion", 10.0 * x.new_ones(PIXELS), constraint=constraints.positive)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(0, x.new_ones(Z_DIM)).to_event(1))
            ell = pyro.sample("l", dist.LogNormal(library, 0.1).to_event(1))
            logits = (ell * self.decoder(z) + 1e-6).log() - (theta + 1e-6).log()
            pyro.sample("x", dist.NegativeBinomial(total_count=theta, logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, library: Tensor) -> None:
        pyro.module("scvi", self)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(*self.z_encoder(torch.log1p(x))).to_event(1))
            loc, scale = self.l_encoder(torch.log1p(x))
            pyro.sample("l", dist.LogNormal(library + loc, 0.1 * scale).to_event(1))


def counts() -> Public:
    vae = Counts()
    xs = [torch.poisson(torch.full((BATCH, PIXELS), rate)) for rate in (3.0, 6.0)]
    return Public(vae.model, vae.guide, positional(*[(x, x.sum(-1, keepdim=True).log()) for x in xs]))


class Hierarchical(nn.Module):
    """An offset of each pixel that all images share, in a plate of the whole data set."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Gaussian(PIXELS, Z_DIM), decoder(Z_DIM, PIXELS)

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        offset = pyro.sample("offset", dist.Normal(x.new_zeros(PIXELS), 1.0).to_event(1))
        with pyro.plate("data", 40, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z) + offset, 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        loc = pyro.param("offset_loc", lambda: x.new_zeros(PIXELS))
        scale = pyro.param("offset_scale", lambda: x.new_full((PIXELS,), 0.1), constraint=constraints.positive)
        pyro.sample("offset", dist.Normal(loc, scale).to_event(1))
        with pyro.plate("data", 40, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


def hierarchical() -> Public:
    vae = Hierarchical()
    return Public(vae.model, vae.guide, positional((torch.randn(BATCH, PIXELS),), (torch.randn(BATCH, PIXELS),)))


class Positive(nn.Module):
    """A real-valued and a positive latent, and a guide that draws both as one auxiliary vector."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(PIXELS, 3), decoder(Z_DIM, PIXELS)
        self.scale_tril = nn.Parameter(0.3 * torch.eye(3))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z_DIM), 1.0).to_event(1))
            noise = pyro.sample("noise", dist.Gamma(x.new_full((1,), 2.0), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            q = dist.MultivariateNormal(self.encoder(x), scale_tril=self.scale_tril.tril())
            u = pyro.sample("u", q, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u[..., :Z_DIM], log_density=0.0, event_dim=1))
            log_noise = u[..., Z_DIM:]
            pyro.sample("noise", dist.Delta(log_noise.exp(), log_density=-log_noise.sum(-1), event_dim=1))


def auxiliary() -> Public:
    vae = Positive()
    return Public(vae.model, vae.guide, positional((torch.randn(BATCH, PIXELS),), (torch.randn(BATCH, PIXELS),)))


def autoguide() -> Public:
    """One variational factor for each latent of each image of this batch."""
    model = Positive().model
    return Public(model, AutoNormal(model), positional((torch.randn(BATCH, PIXELS),)))


class Pixels(nn.Module):
    """Pixels in a separate plate, outside the plate of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Gaussian(PIXELS, Z_DIM), decoder(Z_DIM, PIXELS)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        data, pixels = pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", PIXELS, dim=-2)
        with data:
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z_DIM), 1.0).to_event(1))
            with pixels:
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z).T), obs=x.T)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


class Gains(nn.Module):
    """A latent in the plate of the pixels, of shape (pixels, B)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = Gaussian(PIXELS, PIXELS), nn.Parameter(torch.randn(PIXELS, 1))

    def model(self, x: Tensor) -> None:
        pyro.module("gains", self)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", PIXELS, dim=-2):
            gain = pyro.sample("gain", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=gain + self.bias), obs=x.T)

    def guide(self, x: Tensor) -> None:
        pyro.module("gains", self)
        loc, scale = self.encoder(x)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", PIXELS, dim=-2):
            pyro.sample("gain", dist.Normal(loc.T, scale.T))


def pixels(program: Callable[[], Any] = Pixels) -> Public:
    vae = program()
    return Public(vae.model, vae.guide, positional((binary(PIXELS),), (binary(PIXELS),)))


def gains() -> Public:
    return pixels(Gains)


FACTORIES: dict[str, Callable[[], Public]] = {
    make.__name__: make
    for make in (
        tutorial,
        annealed,
        conditional,
        labelled,
        masked,
        packed,
        flow_prior,
        autoregressive_prior,
        zuko_prior,
        topics,
        counts,
        hierarchical,
        auxiliary,
        autoguide,
        pixels,
        gains,
    )
}
