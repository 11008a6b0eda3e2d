r"""Which fields of a configuration a program of your own reads."""

from __future__ import annotations

import copy
from typing import Any

from pyro_vae.config.flags import Config

# Fields that have an effect only if the program reads them.
_MODEL_FLAGS = ("prior", "posterior", "net", "depth", "width", "latent_dim", "labels")


def set_model_flags(config: Config) -> list[str]:
    """Return the fields of model flags that are not the default, each of which a program should read."""
    return [name for name in _MODEL_FLAGS if getattr(config, name) != getattr(Config, name)]


class WatchedConfig(Config):
    """A configuration that records which of its fields are read, in `read`."""

    @staticmethod
    def of(config: Config) -> WatchedConfig:
        """Return a copy of a configuration whose reads are recorded from now on."""
        watched = copy.copy(config)
        object.__setattr__(watched, "_read", set())
        object.__setattr__(watched, "__class__", WatchedConfig)
        return watched  # type: ignore[return-value]

    def __getattribute__(self, name: str) -> Any:
        fields = object.__getattribute__(self, "__dict__")
        if "_read" in fields:  # not in a copy with other values, which has read all fields
            # `vars` and the like read all of them.
            fields["_read"].update(fields if name == "__dict__" else {name})
        return object.__getattribute__(self, name)

    @property
    def read(self) -> set[str]:
        """Names of the attributes that have been read."""
        return set(object.__getattribute__(self, "__dict__")["_read"])
