r"""Random generators and versions on which the results of a run depend, as values that a checkpoint can hold."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch

_LOG = logging.getLogger("pyro_vae")

State = dict[str, Any]


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
                saved.get(name),
                current,
            )
