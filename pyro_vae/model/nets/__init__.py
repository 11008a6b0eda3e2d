"""Encoder and decoder networks, in families that are bound to an image shape."""

from pyro_vae.model.nets.conv import Conv, ResNet
from pyro_vae.model.nets.dense import MLP, Dense, Gated, NetworkFamily, relu
from pyro_vae.model.nets.standardized import StandardizedNets

__all__ = ["MLP", "Conv", "Dense", "Gated", "NetworkFamily", "ResNet", "StandardizedNets", "relu"]
