"""Contents of the run folders of the tests."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.runs import RunFolder

CONFIG = {"prior": "standard", "latent_dim": 50, "seed": 0, "epochs": None}


def tree(path: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file, and None for every folder, by relative path."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


def epochs(folder: RunFolder) -> list[int]:
    return [line["epoch"] for line in folder.metrics()]
