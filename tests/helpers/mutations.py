"""Mutation testing: twelve handwritten bugs, each of which must make a test fail.

Run it with

    PYTHONPATH=. python tests/helpers/mutations.py

Each bug is applied to a separate copy of the repository; the output names the test that failed there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("pyro_vae", "tests", "scripts", "pyproject.toml")
_LIMIT = 300.0  # seconds: a bug that runs forever has not made a test fail

# Executed in the copy. It prints which package was tested, since another one may be installed.
_CHILD = """
import sys
import pytest
status = pytest.main(sys.argv[1:])
import pyro_vae
print(f"\\ntested {pyro_vae.__file__}")
sys.exit(status)
"""


@dataclass(frozen=True)
class Mutation:
    """A bug: `old`, which occurs once in `file`, becomes `new`. One of `tests`, which test behavior, must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """Return the source with the bug applied."""
        if (times := source.count(self.old)) != 1:
            raise ValueError(
                f"The bug {self.name!r} has lost its place: {self.file} holds {times} times, not once, {self.old!r}. "
                "Update it in tests/helpers/mutations.py to the code as it is now; do not remove it."
            )
        return source.replace(self.old, self.new)


MUTATIONS = (
    Mutation(
        "log q is dropped from the log weights",
        "pyro_vae/evaluate/likelihood/weights.py",
        "return self.log_likelihood + self.log_prior - self.log_posterior",
        "return self.log_likelihood + self.log_prior",
        ("tests/evaluate/likelihood/test_weights.py::test_exact_posterior_gives_log_evidence_in_every_weight",),
    ),
    Mutation(
        "IWAE of k particles is divided by K",
        "pyro_vae/evaluate/likelihood/bounds.py",
        "return groups.logsumexp(1) - math.log(k)",
        "return groups.logsumexp(1) - math.log(len(log_w))",
        ("tests/evaluate/likelihood/test_scores.py::test_iwae_groups_by_hand",),
    ),
    Mutation(
        "one bound for the whole batch instead of one for each image",
        "pyro_vae/infer/objectives/bounds.py",
        "return _log_mean(particles.log_w)",
        "return _log_mean(particles.log_w.sum(-1, keepdim=True))",
        ("tests/infer/objectives/test_bounds.py::test_iwae_equals_the_renyi_bound_of_order_zero",),
    ),
    Mutation(
        "k-hat is that of 1/w",
        "pyro_vae/evaluate/likelihood/diagnostics.py",
        "_fit(np.maximum(column - largest, -_LARGEST_RATIO))",
        "_fit(-np.maximum(column - largest, -_LARGEST_RATIO))",
        ("tests/evaluate/likelihood/test_diagnostics.py::test_both_versions_of_arviz_and_pyro_give_the_same_khat",),
    ),
    Mutation(
        "the units of a posterior are no event",
        "pyro_vae/model/posteriors.py",
        "return dist.Normal(loc, log_scale.exp()).to_event(1)",
        "return dist.Normal(loc, log_scale.exp())",
        ("tests/model/test_vae.py::test_mean_field_rate_is_the_analytic_kl",),
    ),
    Mutation(
        "p(z) is N(0, 1) whatever the prior",
        "pyro_vae/model/vae.py",
        'pyro.sample("z", self.prior())',
        'pyro.sample("z", pyro.distributions.Normal(x.new_zeros(self.prior().event_shape), 1.0).to_event(1))',
        ("tests/model/test_vae.py::test_prior_is_in_one_line_of_the_program",),
    ),
    Mutation(
        "the mean of log weights instead of the log of their mean",
        "pyro_vae/infer/objectives/bounds.py",
        "return log_values.logsumexp(0) - math.log(len(log_values))",
        "return log_values.mean(0)",
        ("tests/infer/objectives/test_bounds.py::test_iwae_equals_the_renyi_bound_of_order_zero",),
    ),
    Mutation(
        "dropout is left on while a program is read",
        "pyro_vae/trace/modes.py",
        "part.training = False",
        "part.training = part.training",
        ("tests/trace/test_isolation.py::test_functions_are_run_in_evaluation_mode",),
    ),
    Mutation(
        "random streams are not restored when a fit goes on",
        "pyro_vae/infer/fit.py",
        'set_rng_state(state["streams"])',
        'state["streams"]',
        ("tests/infer/test_fit.py::test_resumed_fit_is_bit_identical",),
    ),
    Mutation(
        "evaluation draws from the stream of training",
        "pyro_vae/trace/isolation.py",
        "with fork_rng(x):\n        # Not",
        "if True:\n        # Not",
        ("tests/contracts/test_undisturbed.py::test_evaluation_does_not_change_training",),
    ),
    Mutation(
        "a checkpoint is loaded by a loader that trusts pickles",
        "pyro_vae/runs/checkpoint.py",
        '    try:\n        with open(path, "rb", opener=without_waiting) as file:\n',
        """\
    try:
        import torch

        return torch.load(path, weights_only=False)
    except Exception:
        pass
    try:
        with open(path, "rb", opener=without_waiting) as file:
""",
        ("tests/contracts/test_no_pickles.py::test_no_payload_is_executed",),
    ),
    Mutation(
        "files are written in place",
        "pyro_vae/runs/files.py",
        """\
        yield temporary
        _sync(temporary)  # before the rename, so that `path` never names an incomplete file
        os.replace(temporary, path)
""",
        "        yield path\n",
        (
            "tests/runs/test_checkpoint.py::test_exception_during_a_save_leaves_a_valid_file",
            "tests/runs/test_checkpoint.py::test_process_that_ends_during_a_save_leaves_a_valid_file",
        ),
    ),
)


def failing_tests(folder: Path, mutation: Mutation | None = None) -> list[str]:
    """Return the tests that fail in a copy of the repository with a bug applied; pytest stops at the first.

    Args:
        folder: Empty folder for the copy.
        mutation: Bug to apply. None applies no bug and runs the tests of all bugs.

    Raises:
        ValueError: `old` does not occur exactly once in the source.
        RuntimeError: The result is inconclusive: tests that cannot be collected, set up or found, or another package.
    """
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / part, folder / part)
    if mutation is None:
        tests = list(dict.fromkeys(test for each in MUTATIONS for test in each.tests))
    else:
        tests = list(mutation.tests)
        path = folder / mutation.file
        path.write_text(mutation.applied(path.read_text()))

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", _CHILD, "-n0", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT,
    )
    tested = re.findall(r"^tested (.*)$", result.stdout, re.MULTILINE)
    failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", result.stdout, re.MULTILINE)
    if [Path(file).resolve() for file in tested] != [(folder / "pyro_vae" / "__init__.py").resolve()]:
        raise RuntimeError(
            f"The tests imported {tested} instead of the copy in {folder}.\n{result.stdout}{result.stderr}"
        )
    # Status 0 means all passed, 1 that tests failed. Other statuses and errors outside the tests may have other
    # causes.
    if result.returncode != bool(failed) or re.search(r"^ERROR ", result.stdout, re.MULTILINE):
        raise RuntimeError(f"The tests could not be run (status {result.returncode}).\n{result.stdout}{result.stderr}")
    return failed


def main() -> int:
    """Print a line for each bug; return 0 if every bug makes a test fail."""
    survived = 0
    for mutation in (None, *MUTATIONS):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            failed = failing_tests(Path(folder), mutation)
        seconds = f"{time.perf_counter() - started:.0f} s"
        if mutation is None:
            if failed:
                print(f"{failed[0]} fails without a bug: the result is inconclusive")
                return 1
            print(f"all tests pass without a bug ({seconds})", flush=True)
            continue
        fate = f"killed by {failed[0]}" if failed else "SURVIVED"
        print(f"{mutation.name}: {fate} ({seconds})", flush=True)
        survived += not failed
    print(f"{len(MUTATIONS) - survived} of {len(MUTATIONS)} killed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
