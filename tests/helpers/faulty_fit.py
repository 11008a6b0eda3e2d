"""scripts/fit.py with a failure planted in one of several processes: faulty_fit.py WHAT WHERE RANK [flags of fit.py].

WHERE is `start` (before the run folder exists), the index of a step, `save` (inside the second save of a checkpoint),
or `scores`. WHAT is kill, error, interrupt or disk; or SIGTERM to this process (terminate), to torchrun (stop), or to
torchrun and to this process (stop-all). Processes that are started again do not fail.
"""

from __future__ import annotations

import errno
import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any

from helpers.calls import ROOT

from pyro_vae import runs
from pyro_vae.errors import UserError
from pyro_vae.infer import SVI
from pyro_vae.instruments import scores
from pyro_vae.runs import files


def fail(what: str) -> None:
    """End this process, ask it to end, or raise an error."""
    if what == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if what == "error":
        raise UserError("planted")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what.startswith("stop"):
        os.kill(os.getppid(), signal.SIGTERM)
    if what != "stop":
        os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    """Call a function before each call of another one, with the same arguments."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        action(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, call)


def plant(what: str, where: str) -> None:
    saves: list[str] = []

    def replacing(source: Any, target: Any) -> None:
        saves.extend([str(target)] if "step-" in str(target) else [])
        if len(saves) == 2:
            fail(what)

    if where == "start":
        before(runs, "make_fit", lambda run: fail(what))
    elif where == "save":
        before(files.os, "replace", replacing)
    elif where == "scores":
        before(scores, "score_batched", lambda program, batch, *_, **__: fail(what) if len(batch) > 2 else None)
    else:
        before(SVI, "step", lambda svi, *_, **__: fail(what) if svi.steps == int(where) else None)


if __name__ == "__main__":
    what, where, rank = sys.argv[1:4]
    del sys.argv[1:4]
    if os.environ["RANK"] == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        plant(what, where)
    sys.argv[0] = str(ROOT / "scripts" / "fit.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
