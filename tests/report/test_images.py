"""Figures of pictures: nothing is cut off at their edges."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_vae.report.images import gallery


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(80, 75), (40, 120), (160, 60)])
def test_names_of_a_gallery_are_not_cut_off(number: int, shape: tuple[int, int], tmp_path: Path) -> None:
    """The outermost pixels are white, and there is ink above the red pictures."""
    Image.fromarray(np.full((*shape, 3), (255, 0, 0), np.uint8)).save(tmp_path / "picture.png")
    content = io.BytesIO()
    gallery({f"run {index}": tmp_path / "picture.png" for index in range(number)}).savefig(content, dpi=60)
    red, green, _ = np.moveaxis(np.asarray(Image.open(content).convert("RGB")), 2, 0)
    for edge in (green[0], green[-1], green[:, 0], green[:, -1]):
        assert edge.min() == 255
    top = int(((red == 255) & (green == 0)).any(1).argmax())
    assert (red[:top] < 60).any()
