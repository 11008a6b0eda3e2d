"""Loading executes no code: pickled payloads do not run, and a run folder cannot cause them to."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae.errors import CheckpointError
from pyro_vae.runs import Checkpoints, checkpoint

pytestmark = pytest.mark.host


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def in_numpy(payload: Any) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = payload
    return array


def in_the_optimizer(payload: Any) -> Any:
    moments = {"exp_avg": [torch.zeros(2), payload]}
    return {"step": 1, "run": {}, "state": {"svi": {"optimizer": {"state": {0: moments}}}}}


TOUCH = "__import__('pathlib').Path({!r}).touch()"
PAYLOADS: dict[str, Callable[[str], Any]] = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "subprocess.call": lambda canary: Call(subprocess.call, ["touch", canary]),
    "open": lambda canary: Call(open, canary, "w"),
    "eval": lambda canary: Call(eval, TOUCH.format(canary)),
    "exec": lambda canary: Call(exec, TOUCH.format(canary)),
    "in an array": lambda canary: in_numpy(Call(exec, TOUCH.format(canary))),
    "in the optimizer's state": lambda canary: in_the_optimizer(Call(exec, TOUCH.format(canary))),
    "in a key": lambda canary: OrderedDict([((Call(exec, TOUCH.format(canary)),), 1)]),
    "a pickle within": lambda canary: Call(pickle.loads, pickle.dumps(Call(exec, TOUCH.format(canary)))),
}
WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    "torch.save": torch.save,
    "torch.save of old": lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_no_payload_is_executed(writer: str, tmp_path: Path, promised: Callable[[str], None]) -> None:
    for number, (name, payload) in enumerate(PAYLOADS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        canary, path = folder / "canary", folder / "step-000000001.safetensors"
        WRITERS[writer](payload(str(canary)), path)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            Checkpoints(folder, {}).newest()
        # torch.load chooses the format by file extension and unpickles no .safetensors file; hence the second name.
        other = path.with_name("checkpoint.pt")
        shutil.copyfile(path, other)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            checkpoint.load(other)
        assert not canary.exists(), name
        content = path.read_bytes()
        with suppress(Exception):  # errors after the call do not matter
            pickle.loads(content) if writer == "pickle" else torch.load(io.BytesIO(content), weights_only=False)
        assert canary.exists(), name  # the payload works: a loader that trusts the file executes it
    promised(f"0 of {len(PAYLOADS)} payloads written by {writer} are executed")
