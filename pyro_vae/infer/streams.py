r"""Random generators and versions on which the results of a run depend, as values that a checkpoint can hold."""

from __future__ import annotations

import ctypes
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

from pyro_vae.trace import global_generator

_LOG = logging.getLogger("pyro_vae")

State = dict[str, Any]

_NUMPY: Any = np.random  # its type annotations lack set_bit_generator
_TWISTER_BYTES = 4 * 625  # the state words of the Mersenne Twister and the position


def rng_state() -> State:
    """Return the state of the global random generators of torch (on all devices), Python and NumPy."""
    version, words, gauss = random.getstate()
    numpy: State = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": {"version": version, "words": torch.tensor(words, device="cpu"), "gauss": gauss},
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
    }


def set_rng_state(state: State) -> None:
    """Restore the generators from `rng_state`; those of CUDA only if a device is available."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})


def numerics_versions() -> State:
    """Return the version of torch and the number of threads, which determine the order of sums."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def warn_if_versions_differ(saved: State) -> None:
    """Log a warning for each of `numerics_versions` that differs from a saved value."""
    for name, current in numerics_versions().items():
        if saved.get(name) != current:
            _LOG.warning(
                "The state was saved with %s %s, this process has %s: the last bits may differ.",
                name,
                str(saved.get(name))[:40],
                current,
            )


class OwnStreams:
    """Random streams of one fit among several: in the global generators while it runs, and saved while others run.

    Args:
        seed: Seed of the streams, as for `pyro.set_rng_seed`.
    """

    def __init__(self, seed: int) -> None:
        with restored_streams():
            _NUMPY.set_bit_generator(np.random.MT19937())
            pyro.set_rng_seed(seed)
            self._generators = {global_generator(device): torch.Generator(device) for device in _devices()}
            self._words = b""
            self._keep()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Make them the global streams. On exit they are saved, but the previous global streams are not restored."""
        for generator, own in self._generators.items():
            generator.set_state(own.get_state())
        random.setstate(self._python)
        # Exchanging the generator is about 100 times faster than copying its state.
        _NUMPY.set_bit_generator(self._numpy)
        if self._halved["has_gauss"]:
            np.random.set_state(self._halved)
        try:
            yield
        finally:
            self._keep()

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the torch generator of a device, to draw from while the streams are not in place."""
        return self._generators[global_generator(device)]

    def _keep(self) -> None:
        for generator, own in self._generators.items():
            own.set_state(generator.get_state())
        self._python = random.getstate()
        self._numpy: Any = _NUMPY.get_bit_generator()
        # NumPy generates normal numbers in pairs and may hold one back outside the generator. Reading it is slow, so it
        # is read only if the generator has been used, or if a number was held back before.
        words = ctypes.string_at(self._numpy.ctypes.state_address, _TWISTER_BYTES)
        if words != self._words or self._halved["has_gauss"]:
            self._words = words
            self._halved: State = np.random.get_state(legacy=False)


@contextmanager
def restored_streams() -> Iterator[None]:
    """Restore the global streams on exit."""
    state, numpy = rng_state(), _NUMPY.get_bit_generator()
    try:
        yield
    finally:
        _NUMPY.set_bit_generator(numpy)
        set_rng_state(state)


def _devices() -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(count))]
