"""Exit of scripts: one-line errors, exit status, and signals deferred to the end of a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from pyro_vae import cli
from pyro_vae.errors import CheckpointError, NonFiniteError, OutOfMemoryError, UserError

pytestmark = pytest.mark.host

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
FULL = "; nvidia-smi lists the processes that use the device, or use --device cpu"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Set the signal handlers of an interactive shell, and restore the previous ones."""
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def noted() -> NonFiniteError:
    error = NonFiniteError(7)
    error.add_note("That is batch 1 of epoch 2.")
    return error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (lambda: UserError("bad\ninput"), 2, "error: bad input\n"),
        (lambda: CheckpointError("damaged"), 2, "error: damaged\n"),
        (lambda: UserError("run \x1b[31m\u202e"), 2, "error: run \\x1b[31m\\u202e\n"),
        (lambda: OSError(28, "No space left", "file"), 1, "error: [Errno 28] No space left: 'file'\n"),
        (lambda: OutOfMemoryError("try less"), 1, "error: try less\n"),
        (lambda: torch.OutOfMemoryError("CUDA.\nTried"), 1, f"error: out of memory (CUDA.){FULL}\n"),
        (KeyboardInterrupt, 130, "stopped\n"),
    ],
)  # fmt: skip
def test_error_is_one_line_with_an_exit_status(
    error: Callable[[], BaseException], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, cli.exit_status():
        raise error()
    assert caught.value.code == status
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("CUDA error: out of memory", FULL),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", FULL),
        ("DefaultCPUAllocator: can't allocate memory", ""),
    ],
)
def test_memory_that_is_full_from_the_start(message: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of this kind are no `torch.OutOfMemoryError`."""
    with pytest.raises(SystemExit) as caught, cli.exit_status():
        raise RuntimeError(message)
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: out of memory ({message}){advice}\n"


# As worded by torch and the CUDA runtime.
LOST = [
    torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronous."),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: no CUDA-capable device is detected"),
    RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: CUDA driver initialization failed"),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("Found no NVIDIA driver on your system."),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_failed_device_is_one_line_that_says_what_to_do(
    error: RuntimeError, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, cli.exit_status("continue with --resume"):
        raise error
    assert caught.value.code == 1
    cause = str(error).splitlines()[0]
    advice = "check it with nvidia-smi and continue with --resume, or use --device cpu"
    assert capsys.readouterr().err == f"error: the device failed ({cause}); {advice}\n"


def test_only_a_script_that_can_continue_offers_it(capsys: pytest.CaptureFixture[str]) -> None:
    """evaluate.py, which gives no way to continue, has no --resume."""
    for continues in ("", "continue with --resume"):
        for error in (KeyboardInterrupt, LOST[0]):
            with pytest.raises(SystemExit), cli.exit_status(continues):
                raise error
            assert ("--resume" in capsys.readouterr().err) == bool(continues)


@pytest.mark.parametrize("cause", ["device-side assert triggered", "an illegal memory access was encountered"])
def test_wrong_operation_on_a_device_keeps_its_traceback(cause: str) -> None:
    with pytest.raises(torch.AcceleratorError, match=cause), cli.exit_status():
        raise torch.AcceleratorError(f"CUDA error: {cause}")


def test_nonfinite_error_is_printed_with_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, cli.exit_status():
        raise noted()
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Non-finite loss or gradient at step 7 ")
    assert error.endswith("That is batch 1 of epoch 2.\n")


def test_defect_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), cli.exit_status():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_value_error_from_other_code_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="operands could not be broadcast") as caught, cli.exit_status():
        np.ones(2) + np.ones(3)
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_signal_waits_for_the_step(number: int, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    steps = []

    def take_steps() -> None:
        with cli.exit_status("continue with --resume"), cli.deferred_signals() as stop:
            while not stop():
                if len(steps) == 2:
                    os.kill(os.getpid(), number)
                    os.kill(os.getpid(), signal.SIGTERM)  # e.g. forwarded by a parent process
                steps.append("taken to its end")

    with pytest.raises(SystemExit) as caught:
        take_steps()
    assert len(steps) == 3
    assert caught.value.code == status
    assert capsys.readouterr().err == "stopped; continue with --resume\n"
    os.kill(os.getpid(), number)  # during exit: the status does not change


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_second_signal_stops_at_once(number: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 3.5])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(seconds))

    def insist() -> None:
        with cli.exit_status(), cli.deferred_signals() as stop:
            os.kill(os.getpid(), number)
            assert stop()
            os.kill(os.getpid(), number)
            pytest.fail("not left")

    with pytest.raises(SystemExit) as caught:
        insist()
    assert caught.value.code == status


def test_without_a_signal_nothing_ends() -> None:
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    with cli.exit_status(), cli.deferred_signals() as stop:
        assert not stop()
    assert {number: signal.getsignal(number) for number in before} == before


def test_signals_ignored_by_the_shell_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with cli.exit_status(), cli.deferred_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop()
