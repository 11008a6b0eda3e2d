"""What test_ranks.py runs in several processes: writes results to <folder>/<rank>.json, then its last process dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_vae import cli, parallel, ranks
from pyro_vae.errors import NonFiniteError, OutOfMemoryError, RanksError, UserError


class TwoArgumentsError(UserError):
    """An error that cannot be rebuilt from its message."""

    def __init__(self, first: str, second: torch.Tensor) -> None:
        super().__init__(f"{first}: {second.tolist()}")
        self.second = second


def nonfinite() -> Exception:
    error = NonFiniteError(7)
    error.add_note("That is batch 1.")
    return error


ERRORS: dict[str, Callable[[], Exception]] = {
    "nonfinite": nonfinite,
    "memory": lambda: OutOfMemoryError("try less"),
    "user": lambda: TwoArgumentsError("bad", torch.ones(2)),
    "file": lambda: OSError(28, "No space left", "file"),
    "bug": lambda: KeyError("z"),
}


def caught(part_error: Callable[[], Exception]) -> dict[str, Any]:
    """Raise an error in part 4 of 7, and describe the one that arrives here."""
    computed = []

    def work(part: int) -> int:
        computed.append(part)
        if part == 4:
            raise part_error()
        return part

    received = []
    try:
        received += parallel.map_parts(work, range(7))
    except Exception as error:  # noqa: BLE001
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"kinds": kinds, "message": str(error), "notes": getattr(error, "__notes__", []), "computed": computed}
    return {"received": received}


def main(folder: Path) -> None:
    rank, size = ranks.rank(), ranks.size()
    numbers = torch.arange(3.0) * (rank + 1)
    ranks.sum_flat(numbers)
    first = folder / "first"

    def arrive() -> int:
        if rank:
            assert first.exists()
        else:
            first.touch()
        return rank

    results = {
        "rank": [rank, size, ranks.is_first()],
        "gather": ranks.gather({"rank": rank, "tensor": torch.full((2,), rank)}["tensor"].tolist()),
        "broadcast": ranks.broadcast(f"from {rank}"),
        "on_first": parallel.on_first(lambda: f"by {ranks.rank()}"),
        "in_turn": parallel.in_turn(arrive),
        "sum": numbers.tolist(),
        "parts": list(parallel.map_parts(lambda part: [part, ranks.rank()], range(7))),
        "fewer": list(parallel.map_parts(lambda part: part * part, [5])),
        "none": list(parallel.map_parts(lambda part: part, [])),
        "errors": {name: caught(error) for name, error in ERRORS.items()},
    }
    try:
        list(parallel.map_parts(abs, [1, 2])) if rank == 0 else parallel.on_first(lambda: 3)
    except RanksError as error:
        results["diverged"] = str(error)
    print("output")
    logging.getLogger("pyro_vae").warning("a warning of the package")
    warnings.warn("a warning of a library", stacklevel=2)
    (folder / f"{rank}.json").write_text(json.dumps(results))

    def die(part: int) -> None:
        if part == size - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    list(parallel.map_parts(die, range(size)))


if __name__ == "__main__":
    with cli.exit_status(), ranks.process_group("cpu"):
        main(Path(sys.argv[1]))
