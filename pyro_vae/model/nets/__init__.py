"""Networks of encoders and decoders, each kind built from the shape of an image."""

from pyro_vae.model.nets.conv import Conv, ResNet
from pyro_vae.model.nets.dense import MLP, Dense, Gated, NetworkFamily, relu
from pyro_vae.model.nets.standardized import StandardizedNets

__all__ = ["MLP", "Conv", "Dense", "Gated", "NetworkFamily", "ResNet", "StandardizedNets", "relu"]
