"""From names to objects: flags and their defaults, the components that they name, and the programs made of them."""

from pyro_vae.config.choices import CHOICES, Count, Device, DirPath, OptionalCount, OptionalDirPath, flag
from pyro_vae.config.flags import Config, ConfigFlags

__all__ = [
    "CHOICES",
    "Config",
    "ConfigFlags",
    "Count",
    "Device",
    "DirPath",
    "OptionalCount",
    "OptionalDirPath",
    "flag",
]
