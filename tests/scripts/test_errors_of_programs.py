"""An error inside your own program says at which file and line, whatever its type."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from helpers.calls import TINY, inside
from helpers.program_files import NET

from pyro_vae.errors import place_in_program

WRAPPED = """
built = factory
def factory(config, images):
    net = built(config, images)
    inner = net.model
    def model(x, *labels):
        {statement}
        return inner(x)
    net.model = model
    return net
"""


def fitted(statement: str, folder: Path) -> tuple[int, str, int]:
    """Return the status of a fit, everything that it says of the error, and the number of the failing line."""
    path = folder / "mine.py"
    path.write_text(NET + WRAPPED.format(statement=statement))
    line = path.read_text().splitlines().index(f"        {statement}") + 1
    try:
        result = inside("fit", *TINY, "--program", f"{path}:factory", "--out", folder / "run")
    except Exception as error:  # noqa: BLE001 -- a traceback in a process of its own
        return 1, "".join(traceback.format_exception(error)), line
    return result.returncode, result.stderr, line


@pytest.mark.parametrize(
    "statement",
    [
        "open('weights.pt')",
        "raise OSError('no weights')",
        "raise MemoryError('too much')",
        "raise RuntimeError('DefaultCPUAllocator: too much')",
        "raise __import__('pyro_vae').errors.UserError('an error of ours')",
    ],
)
def test_error_that_is_one_line_names_the_place(statement: str, tmp_path: Path) -> None:
    status, said, line = fitted(statement, tmp_path)
    assert status in (1, 2)
    assert said.count("\n") == 1
    assert f"(at {tmp_path / 'mine.py'}, line {line})" in said


@pytest.mark.parametrize("statement", ["raise ValueError('negative')", "x.reshape(-1, 7)", "{}['name']", "undefined"])
def test_any_other_error_keeps_its_traceback(statement: str, tmp_path: Path) -> None:
    _, said, line = fitted(statement, tmp_path)
    assert f'File "{tmp_path / "mine.py"}", line {line}' in said


def test_error_outside_of_a_program_names_no_place() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("/nonexistent/file").read_text()
    assert place_in_program(caught.value) == ""
