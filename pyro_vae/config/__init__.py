"""Command-line flags and their defaults, and the programs and components that they name."""

from pyro_vae.config.choices import CHOICES, MAX_SEEDS, Count, Device, DirPath, OptionalCount, OptionalDirPath, flag
from pyro_vae.config.flags import Config, ConfigFlags

__all__ = [
    "CHOICES",
    "MAX_SEEDS",
    "Config",
    "ConfigFlags",
    "Count",
    "Device",
    "DirPath",
    "OptionalCount",
    "OptionalDirPath",
    "flag",
]
