"""Bit-exact comparison of states and records."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def assert_same(new: Any, old: Any) -> None:
    """Assert that two states are bit-identical, including types: 1, 1.0 and True differ."""
    assert type(new) is type(old)
    if isinstance(old, dict):
        assert list(new) == list(old)
        for key in old:
            assert_same(new[key], old[key])
    elif isinstance(old, list | tuple):
        assert len(new) == len(old)
        for a, b in zip(new, old, strict=True):
            assert_same(a, b)
    elif isinstance(old, Tensor):
        assert new.dtype == old.dtype
        assert new.detach().cpu().numpy().tobytes() == old.detach().cpu().numpy().tobytes()  # -0.0 differs from 0.0
        assert new.shape == old.shape
    else:
        assert repr(new) == repr(old)


def untimed(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "begun": {**state["begun"], "seconds": 0.0}}


def records(epochs: list[Any]) -> list[dict[str, Any]]:
    return [{**epoch.as_dict(), "seconds": 0.0} for epoch in epochs if epoch is not None]
