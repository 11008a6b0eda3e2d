"""VAE programs and their components: plain `nn.Module`s, most of which return a distribution."""

from pyro_vae.model import likelihoods, nets, posteriors, priors
from pyro_vae.model.cvae import CVAE
from pyro_vae.model.density import DensityModel
from pyro_vae.model.gmvae import GMVAE
from pyro_vae.model.m2 import M2
from pyro_vae.model.two_layer import TwoLayerVAE
from pyro_vae.model.vae import VAE

__all__ = ["CVAE", "GMVAE", "M2", "VAE", "DensityModel", "TwoLayerVAE", "likelihoods", "nets", "posteriors", "priors"]
