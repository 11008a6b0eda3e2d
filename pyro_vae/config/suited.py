r"""The likelihood and the binarization that suit the kind of the data, if a configuration leaves them open."""

from __future__ import annotations

from dataclasses import replace

from pyro_vae import data
from pyro_vae.config.choices import AUTO
from pyro_vae.config.flags import Config
from pyro_vae.config.presets import PRESETS
from pyro_vae.errors import UserError

# Value of the likelihood in the configuration of a program that ignores it.
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
# Likelihoods that support each kind of data. The first is the default.
LIKELIHOODS_OF = {
    "binary": (*_BINARY, *_GRAY),
    "gray": (*_GRAY, *_BINARY),
    "color": (*_GRAY, *_BINARY),
    "real": ("gaussian", "isotropic-gaussian"),
    "counts": ("negative-binomial", "poisson", "gaussian", "isotropic-gaussian"),
}


def adapt_to_data(config: Config, images: data.Collection) -> Config:
    """Return the configuration with an automatic likelihood and binarization replaced by those that suit the data.

    Gray images of a named data set are binarized with a Bernoulli likelihood, as in the literature. Your own gray
    images, and all color images, have a logistic mixture over their levels, binary pixels a Bernoulli likelihood, real
    numbers a Gaussian, and counts a negative binomial likelihood.

    Raises:
        UserError: If the likelihood does not support data of this kind.
    """
    likelihood, binarize = config.likelihood, config.binarize
    if likelihood == AUTO:
        as_published = images.kind == "gray" and config.data in data.DATASETS
        wants_levels = binarize == "none" or (binarize == AUTO and not as_published)
        gray = images.kind in ("gray", "color")
        likelihood = "bernoulli" if gray and not wants_levels else LIKELIHOODS_OF[images.kind][0]
    # Programs that ignore --likelihood have a fixed one for binary pixels.
    fixed = "pixelcnn" if config.program == "pixelcnn" else PRESETS.get(config.program, {}).get("likelihood")
    if binarize == AUTO:
        binarize = "dynamic" if (fixed or likelihood) in _BINARY else "none"
    supported = {name for names in LIKELIHOODS_OF.values() for name in names}
    if (fixed or likelihood) in supported - set(LIKELIHOODS_OF[images.kind]):
        what = f"--likelihood {likelihood}" if fixed is None else f"--program {config.program}"
        offered = ", ".join(LIKELIHOODS_OF[images.kind])
        raise UserError(f"{what} does not support {images.kind} data; --likelihood may be {offered}.")
    if fixed is not None and config.likelihood == AUTO:
        likelihood = UNREAD
    return replace(config, likelihood=likelihood, binarize=binarize)
