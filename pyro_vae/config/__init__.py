"""From names to objects: flags and their defaults, the components that they name, and the programs made of them."""

from pyro_vae.config.choices import CHOICES, Count, Device, OptionalCount, flag
from pyro_vae.config.flags import Config

__all__ = ["CHOICES", "Config", "Count", "Device", "OptionalCount", "flag"]
