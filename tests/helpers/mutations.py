"""Twelve bugs made by hand: is there one that no test notices?

    PYTHONPATH=. python tests/helpers/mutations.py

puts each into a copy of the repository of its own, and names the test that turned red there.
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
_LIMIT = 300.0  # seconds: a bug that never ends has turned nothing red

# What runs in the copy. It says at the end which package has been tested: another one may be installed.
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
    """A bug: `old`, which stands once in `file`, becomes `new`; one of `tests`, of behaviour, must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """Return the source with the bug in it."""
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
        ("tests/evaluate/likelihood/test_weights.py::test_the_exact_posterior_gives_log_evidence_in_every_weight",),
    ),
    Mutation(
        "IWAE of k particles is divided by K",
        "pyro_vae/evaluate/likelihood/bounds.py",
        "return groups.logsumexp(1) - math.log(k)",
        "return groups.logsumexp(1) - math.log(len(log_w))",
        ("tests/evaluate/likelihood/test_scores.py::test_groups_of_k_by_hand",),
    ),
    Mutation(
        "one bound for the whole batch instead of one for each image",
        "pyro_vae/infer/objectives/bounds.py",
        "return _log_mean(particles.log_w)",
        "return _log_mean(particles.log_w.sum(-1, keepdim=True))",
        ("tests/infer/objectives/test_bounds.py::test_iwae_is_the_renyi_bound_of_order_zero",),
    ),
    Mutation(
        "k-hat is that of 1/w",
        "pyro_vae/evaluate/likelihood/diagnostics.py",
        "_fit(np.maximum(column - largest, -_LARGEST_RATIO))",
        "_fit(-np.maximum(column - largest, -_LARGEST_RATIO))",
        ("tests/evaluate/likelihood/test_diagnostics.py::test_both_lines_of_arviz_and_pyro_find_the_same_khat",),
    ),
    Mutation(
        "the units of a posterior are no event",
        "pyro_vae/model/posteriors.py",
        "return dist.Normal(loc, log_scale.exp()).to_event(1)",
        "return dist.Normal(loc, log_scale.exp())",
        ("tests/model/test_vae.py::test_the_rate_of_a_mean_field_posterior_is_its_analytic_kl",),
    ),
    Mutation(
        "p(z) is N(0, 1) whatever the prior",
        "pyro_vae/model/vae.py",
        'pyro.sample("z", self.prior())',
        'pyro.sample("z", pyro.distributions.Normal(x.new_zeros(self.prior().event_shape), 1.0).to_event(1))',
        ("tests/model/test_vae.py::test_the_prior_stands_in_one_line_of_the_program",),
    ),
    Mutation(
        "the mean of log weights instead of the log of their mean",
        "pyro_vae/infer/objectives/bounds.py",
        "return log_values.logsumexp(0) - math.log(len(log_values))",
        "return log_values.mean(0)",
        ("tests/infer/objectives/test_bounds.py::test_iwae_is_the_renyi_bound_of_order_zero",),
    ),
    Mutation(
        "dropout is left on while a program is read",
        "pyro_vae/trace/modes.py",
        "part.training = False",
        "part.training = part.training",
        ("tests/trace/test_isolation.py::test_functions_are_read_in_evaluation_mode",),
    ),
    Mutation(
        "random streams are not restored when a fit goes on",
        "pyro_vae/infer/fit.py",
        'set_rng_state(state["streams"])',
        'state["streams"]',
        ("tests/infer/test_fit.py::test_a_fit_continues_to_the_bit",),
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
        '    try:\n        with open(path, "rb", opener=_without_waiting) as file:\n',
        """\
    try:
        import torch

        return torch.load(path, weights_only=False)
    except Exception:
        pass
    try:
        with open(path, "rb", opener=_without_waiting) as file:
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
            "tests/runs/test_checkpoint.py::test_an_exception_within_a_save",
            "tests/runs/test_checkpoint.py::test_a_process_that_ends_within_a_save",
        ),
    ),
)


def red(folder: Path, mutation: Mutation | None = None) -> list[str]:
    """Return which tests fail in a copy of the repository with a bug in it; the first to fail is the last to run.

    Args:
        folder: an empty one, for the copy.
        mutation: the bug; None has none, and runs the tests of all bugs.

    Raises:
        ValueError: the bug has lost its place in the source.
        RuntimeError: nothing has been learned: tests that cannot be collected, set up or found, another package.
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
        raise RuntimeError(f"The copy in {folder} is not what was tested: {tested}.\n{result.stdout}{result.stderr}")
    # 0 is green and 1 is red; of all else, and of errors outside the tests, the bug is not known to be the cause.
    if result.returncode != bool(failed) or re.search(r"^ERROR ", result.stdout, re.MULTILINE):
        raise RuntimeError(f"The tests have not run (status {result.returncode}).\n{result.stdout}{result.stderr}")
    return failed


def main() -> int:
    """Print a line for each bug; return 0 where all are killed."""
    survived = 0
    for mutation in (None, *MUTATIONS):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            failed = red(Path(folder), mutation)
        seconds = f"{time.perf_counter() - started:.0f} s"
        if mutation is None:
            if failed:
                print(f"red without any bug: {failed[0]}; nothing can be learned")
                return 1
            print(f"green without a bug ({seconds})", flush=True)
            continue
        fate = f"killed by {failed[0]}" if failed else "SURVIVED"
        print(f"{mutation.name}: {fate} ({seconds})", flush=True)
        survived += not failed
    print(f"{len(MUTATIONS) - survived} of {len(MUTATIONS)} killed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
