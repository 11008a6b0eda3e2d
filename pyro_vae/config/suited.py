r"""What a configuration leaves to the data: the likelihood and the binarization that suit them."""

from __future__ import annotations

from dataclasses import replace

from pyro_vae import data
from pyro_vae.config.choices import AUTO
from pyro_vae.config.flags import Config
from pyro_vae.config.presets import PRESETS
from pyro_vae.errors import UserError

# What a configuration says of a likelihood that its program does not read.
UNREAD = "bernoulli"
_BINARY = ("bernoulli", "pixelcnn")
_GRAY = (
    "logistic-mixture",
    "categorical",
    "gaussian",
    "isotropic-gaussian",
    "continuous-bernoulli",
    "cross-entropy",
)
# For each kind of data the likelihoods that read it, the one that AUTO chooses first.
LIKELIHOODS_OF = {
    "binary": (*_BINARY, *_GRAY),
    "gray": (*_GRAY, *_BINARY),
    "color": (*_GRAY, *_BINARY),
    "real": ("gaussian", "isotropic-gaussian"),
    "counts": ("negative-binomial", "poisson", "gaussian", "isotropic-gaussian"),
}


def adapt_to_data(config: Config, images: data.Collection) -> Config:
    """Return the configuration with the likelihood and the binarization that suit its data, where it leaves them open.

    Gray images of a data set by name are binarized, as they are in the literature, and have a Bernoulli likelihood.
    Gray levels and colors of a user's own have a logistic mixture over their levels, 0/1 pixels a Bernoulli likelihood,
    real numbers a Gaussian and counts a negative binomial one.

    Raises:
        UserError: the likelihood does not read data of this kind.
    """
    likelihood, binarize = config.likelihood, config.binarize
    if likelihood == AUTO:
        as_published = images.kind == "gray" and config.data in data.DATASETS
        wants_levels = binarize == "none" or (binarize == AUTO and not as_published)
        gray = images.kind in ("gray", "color")
        likelihood = "bernoulli" if gray and not wants_levels else LIKELIHOODS_OF[images.kind][0]
    # Programs that read no --likelihood have one of their own, of 0/1 pixels.
    own = "pixelcnn" if config.program == "pixelcnn" else PRESETS.get(config.program, {}).get("likelihood")
    if binarize == AUTO:
        binarize = "dynamic" if (own or likelihood) in _BINARY else "none"
    known = {name for names in LIKELIHOODS_OF.values() for name in names}
    if (own or likelihood) in known - set(LIKELIHOODS_OF[images.kind]):
        what = f"--likelihood {likelihood}" if own is None else f"--program {config.program}"
        offered = ", ".join(LIKELIHOODS_OF[images.kind])
        raise UserError(f"{what} does not read {images.kind} data; --likelihood may be {offered}.")
    if own is not None and config.likelihood == AUTO:
        likelihood = UNREAD
    return replace(config, likelihood=likelihood, binarize=binarize)
