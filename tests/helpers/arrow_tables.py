"""Tables of images in the layout of Hugging Face's `datasets`, written with pyarrow only."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

FILES = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def image_files(images: Sequence[np.ndarray]) -> pa.Array:
    """Return a column of image files in the layout of the feature `Image`."""
    return pa.array([{"bytes": png(image), "path": f"{n}.png"} for n, image in enumerate(images)], FILES)


def write_stream(path: Path, table: pa.Table, rows_per_batch: int = 7) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=rows_per_batch)


def save(folder: Path, table: pa.Table, shards: int = 1) -> None:
    """Write the files of `Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
    for n, name in enumerate(names):
        first, end = (len(table) * each // shards for each in (n, n + 1))
        write_stream(folder / name, table.slice(first, end - first))
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def save_splits(folder: Path, **tables: pa.Table) -> None:
    """Write the files of `DatasetDict.save_to_disk`."""
    for name, table in tables.items():
        save(folder / name, table)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(tables)}))
