"""Labels of tables as strings, however pandas stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_vae.data.formats.tables import from_frame

HALF = "\ud800"  # of a surrogate pair: a string of Python, but not text that UTF-8 can hold


@pytest.mark.parametrize("storage", ["python", "pyarrow"])
@pytest.mark.parametrize("names", [("no", "yes"), ("é", "数"), (HALF, HALF + "b"), ("", " ")])
def test_classes_do_not_depend_on_the_storage_of_strings(storage: str, names: tuple[str, str]) -> None:
    truth = np.arange(60) % 2
    with pd.option_context("mode.string_storage", storage):
        frame = pd.DataFrame({"a": np.arange(60) + 0.5})
        frame["label"] = pd.Series([names[index] for index in truth], dtype=object)
        found = from_frame(frame, Path("table.csv"), (0.8, 0.1, 0.1)).labels
    alone = from_frame(frame.assign(label=truth), Path("table.csv"), (0.8, 0.1, 0.1)).labels
    assert found is not None
    assert alone is not None
    for split in ("train", "valid", "test"):
        assert found.get("class", split).tolist() == alone.get("class", split).tolist()
