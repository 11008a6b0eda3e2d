"""The README's examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from sklearn.datasets import load_sample_images

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def lines_of(code: str, folder: Path) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_library_example(tmp_path: Path) -> None:
    lines = lines_of(EXAMPLES[0], tmp_path)
    last = re.fullmatch(
        r"log p\(x\) (\S+) \+- \S+ nats \(ELBO (\S+), K = 1000, 256 images\); k-hat > 0.67 for (\d+) of 256", lines[-1]
    )
    assert last is not None, lines[-1]
    log_likelihood, elbo, bad = map(float, last.groups())
    assert len(lines) == 31
    assert float(lines[0].removeprefix("epoch 0: ELBO ").split()[0]) < elbo < log_likelihood < -20  # trained: a bound
    assert 0 <= bad <= 256


def test_the_patches_of_photographs(tmp_path: Path) -> None:
    """Each lies in its split's part of the photograph, so that no test patch overlaps a training patch."""
    lines_of(EXAMPLES[1], tmp_path)
    for name, photograph in zip(["china", "flower"], load_sample_images().images, strict=True):
        for split, part, number in [("train", photograph[:, 214:], 2250), ("test", photograph[:, :214], 250)]:
            files = sorted((tmp_path / "patches" / split / name).iterdir())
            assert len(files) == number
            places = sliding_window_view(part, (32, 32, 3))[:, :, 0]
            for file in files[:5]:
                with Image.open(file) as image:
                    patch = np.asarray(image)
                starts = (places[:, :, 0, 0] == patch[0, 0]).all(-1)
                assert (places[starts] == patch).all((1, 2, 3)).any()


def test_the_program_of_ones_own(tmp_path: Path) -> None:
    """It learns the three means: 64 pixels of their labels alone cost less than 64 log 2, 44.4 nats."""
    lines = lines_of(EXAMPLES[2], tmp_path)
    elbo, log_likelihood = map(float, lines[-1].split())
    assert len(lines) == 21
    assert float(lines[0].split()[1]) < elbo <= log_likelihood < -20
    assert elbo > -44.4
    assert len(EXAMPLES) == 3
