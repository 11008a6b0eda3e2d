r"""What the numbers of a run depend on beside its configuration, as values that a checkpoint holds.

These are the random streams that a program may draw from, the version of torch, and the number of threads.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch

_LOG = logging.getLogger("pyro_vae")

State = dict[str, Any]


def rng_state() -> State:
    """Return where the global streams of torch, on every device, of Python and of NumPy stand."""
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
    """Set the global streams to what `rng_state` returned; those of CUDA where there is a device."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})


def numerics_versions() -> State:
    """Return the version of torch and the number of threads, on which the order of sums depends."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def warn_if_versions_differ(saved: State) -> None:
    """Log what differs now from `numerics_versions` at an earlier time."""
    for name, current in numerics_versions().items():
        if saved.get(name) != current:
            _LOG.warning("The state is of %s %s, here is %s: the last bits may differ.", name, saved.get(name), current)
