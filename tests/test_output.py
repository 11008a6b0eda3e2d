"""Output of the scripts: standard streams that are closed, full, or take few characters end nothing."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_vae import output

pytestmark = pytest.mark.host


def in_child(work: Callable[[], bool]) -> bool:
    """Return the result of a function that runs in a forked process, whose file descriptors it may close."""
    child = os.fork()
    if not child:
        result = False
        try:
            result = work()
        finally:
            os._exit(0 if result else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_files_do_not_get_the_numbers_of_closed_streams(closed: tuple[int, ...], tmp_path: Path) -> None:
    """Messages that a library writes to descriptor 2 would otherwise be in the next file that is opened."""

    def work() -> bool:
        for number in closed:
            os.close(number)
        sys.stdout, sys.stderr = (None if n in closed else io.StringIO() for n in (1, 2))  # as Python does
        output.open_standard_streams()
        with open(tmp_path / "file", "wb") as file:
            for number in closed:
                if number:
                    os.write(number, b"a message of a library")
            output.show("a table")
            print("a progress bar", file=sys.stderr)
        return file.name != "" and (tmp_path / "file").read_bytes() == b""

    assert in_child(work)


def test_results_are_printed_in_the_characters_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, expected in (("ascii", rb"L\xe4ufe \u65e5 \udce9"), ("latin-1", b"L\xe4ufe \\u65e5 \\udce9")):
        taken = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(taken, encoding))
            output.open_standard_streams()
            output.show("Läufe 日 \udce9")
            assert taken.getvalue() == expected + b"\n"


def test_results_have_no_control_characters_but_line_feeds(capsys: pytest.CaptureFixture[str]) -> None:
    every = "".join(map(chr, range(0x3000)))
    output.show(f"first\nsecond\x1b[31m\r{every}")
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "first"
    assert lines[1].startswith(r"second\x1b[31m\r\x00")
    assert len(lines) == 4  # one line feed is in `every`
    assert all(line.isprintable() for line in lines)


def test_closed_pipe_and_full_disk_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def work(stream: int) -> bool:
        os.dup2(stream, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        for _ in range(3):
            output.show("a table")
        sys.stdout.flush()
        return True

    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for stream in (writer, full):
        assert in_child(lambda stream=stream: work(stream))
        os.close(stream)


def test_terminal_that_is_closed_ends_no_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with monkeypatch.context() as patch, open(theirs, "w") as terminal:
        patch.setattr(sys, "stderr", terminal)
        output.open_standard_streams()
        print("shown", file=sys.stderr, flush=True)
        assert os.read(ours, 100).startswith(b"shown")
        os.close(ours)
        print("dropped", file=sys.stderr, flush=True)
        assert sys.stderr.isatty() is False  # of the stream below
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # closing flushes it once more


def test_log_messages_of_the_package_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = io.StringIO()
    monkeypatch.setattr(sys, "stderr", taken)
    handler = output.log_handler()
    for name, expected in (("pyro_vae", "a\\x1b[31m\\nerror: fake\n"), ("torch", "a\x1b[31m\nerror: fake\n")):
        handler.handle(logging.LogRecord(name, logging.WARNING, "", 0, "%s", ("a\x1b[31m\nerror: fake",), None))
        assert taken.getvalue() == expected
        taken.truncate(0)
        taken.seek(0)
