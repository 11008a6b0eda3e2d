r"""Programs by name. Each is built from the arguments in the signature of its function.

A function may have the following arguments. Setting a flag that it does not use is an error.

    posterior(latent_dim, encoder=None)     function that builds the component selected by --posterior
    likelihood(latent_dim)                  function that builds the component selected by --likelihood
    prior(latent_dim, posterior=None)       function that builds the component selected by --prior
    net                                     networks selected by --net for the shape of an image, a `nets.NetworkFamily`
    images                                  the data, a `Collection`
    latent_dim, hidden_dim, labels          numbers given by these flags
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pyro_vae.config.components import pixelcnn_channels
from pyro_vae.data import Collection
from pyro_vae.errors import UserError
from pyro_vae.model import CVAE, GMVAE, M2, VAE, DensityModel, TwoLayerVAE, nets, posteriors
from pyro_vae.model.nets.pixelcnn import PixelCNN
from pyro_vae.model.priors.mixture import GaussianMixture

Builder = Callable[..., nn.Module]
_CLUSTERS = 10  # components of the prior of gmvae


def _vae(latent_dim: int, posterior: Builder, likelihood: Builder, prior: Builder) -> nn.Module:
    q = posterior(latent_dim)
    p = likelihood(latent_dim)
    return VAE(prior(latent_dim, posterior=q), p, q)


def _two_layer(latent_dim: int, hidden_dim: int, posterior: Builder, likelihood: Builder, prior: Builder) -> nn.Module:
    # Burda et al.: z1 has twice as many units as z2, and the networks between them half as many hidden units.
    top, bottom, hidden = latent_dim, 2 * latent_dim, [max(1, hidden_dim // 2)] * 2
    return TwoLayerVAE(
        prior=prior(top),
        generator=posteriors.MeanField(lambda outputs: nets.MLP([top, *hidden, outputs]), bottom),
        likelihood=likelihood(bottom),
        posterior=posterior(bottom),
        top_posterior=posterior(top, encoder=lambda outputs: nets.MLP([bottom, *hidden, outputs])),
    )


def _gmvae(latent_dim: int, posterior: Builder, likelihood: Builder) -> nn.Module:
    q = posterior(latent_dim)
    p = likelihood(latent_dim)
    return GMVAE(GaussianMixture(latent_dim, _CLUSTERS), p, q)


def _cvae(
    images: Collection,
    net: nets.NetworkFamily,
    latent_dim: int,
    hidden_dim: int,
    posterior: Builder,
    likelihood: Builder,
    prior: Builder,
) -> nn.Module:
    classes = _number_of_classes("cvae", images)
    return CVAE(**_given_classes(classes, net, latent_dim, hidden_dim, posterior, likelihood, prior))


def _m2(
    images: Collection,
    net: nets.NetworkFamily,
    latent_dim: int,
    hidden_dim: int,
    labels: int,
    posterior: Builder,
    likelihood: Builder,
    prior: Builder,
) -> nn.Module:
    classes = _number_of_classes("m2", images)
    if not classes <= labels <= len(images.train):
        raise UserError(
            f"--labels is {labels}; it must be between {classes}, one for each class, and {len(images.train)}."
        )
    classifier = net.encoder(classes)
    components = _given_classes(classes, net, latent_dim, hidden_dim, posterior, likelihood, prior)
    return M2(**components, classifier=classifier, num_labels=labels)


def _number_of_classes(program: str, images: Collection) -> int:
    if images.labels is None or len(images.labels.names) > 1:
        raise UserError(f"{program} needs data with one label per image, unlike {images.name}: choose other --data.")
    return 1 + int(images.labels.train.max())


def _given_classes(
    classes: int,
    net: nets.NetworkFamily,
    latent_dim: int,
    hidden_dim: int,
    posterior: Builder,
    likelihood: Builder,
    prior: Builder,
) -> dict[str, Any]:
    """Return the components of a program whose encoder and decoder are conditioned on a class."""
    return {
        "features": net.encoder(hidden_dim),
        "prior": prior(latent_dim),
        "likelihood": likelihood(latent_dim + classes),
        "posterior": posterior(
            latent_dim, encoder=lambda outputs: nets.MLP([hidden_dim + classes, hidden_dim, outputs])
        ),
        "num_classes": classes,
    }


def _pixelcnn(images: Collection, hidden_dim: int) -> nn.Module:
    return DensityModel(PixelCNN(images.train, pixelcnn_channels(hidden_dim)))


PROGRAMS: dict[str, Builder] = {
    "vae": _vae,
    "two-layer": _two_layer,
    "gmvae": _gmvae,
    "cvae": _cvae,
    "m2": _m2,
    "pixelcnn": _pixelcnn,
}
