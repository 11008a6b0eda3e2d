"""From names to objects: flags and their defaults, the components that they name, and the programs made of them."""

from pyro_vae.config.flags import CHOICES, Config, Count, Device, OptionalCount, flag

__all__ = ["CHOICES", "Config", "Count", "Device", "OptionalCount", "flag"]
