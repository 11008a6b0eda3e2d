"""The layering of the package, checked on the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyro_vae"
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").glob("*.py"))

# Modules that every room may import.
EVERYWHERE = tuple(
    f"pyro_vae.{name}" for name in ("errors", "failures", "memory", "parallel", "ranks", "text", "torchrun")
)
# Each room and the rooms that it may import besides itself and those; the longest matching prefix counts.
ALLOWED = {
    "pyro_vae/__init__.py": {
        "pyro_vae.config",
        "pyro_vae.data",
        "pyro_vae.estimator",
        "pyro_vae.evaluate",
        "pyro_vae.infer",
        "pyro_vae.model",
        "pyro_vae.runs",
        "pyro_vae.trace",
    },
    "pyro_vae/estimator.py": {
        "pyro_vae.config",
        "pyro_vae.data",
        "pyro_vae.evaluate",
        "pyro_vae.runs",
        "pyro_vae.trace",
    },
    "pyro_vae/errors.py": set(),
    "pyro_vae/failures.py": set(),
    "pyro_vae/memory.py": set(),
    "pyro_vae/parallel.py": set(),
    "pyro_vae/ranks.py": set(),
    "pyro_vae/data/": set(),
    "pyro_vae/model/": set(),
    "pyro_vae/trace/": set(),
    "pyro_vae/infer/": {"pyro_vae.trace"},
    "pyro_vae/evaluate/": {"pyro_vae.trace"},
    "pyro_vae/config/": {"pyro_vae.data", "pyro_vae.infer", "pyro_vae.model", "pyro_vae.report"},
    "pyro_vae/runs/": {
        "pyro_vae.config",
        "pyro_vae.data",
        "pyro_vae.evaluate",
        "pyro_vae.infer",
        "pyro_vae.report",
        "pyro_vae.trace",
    },
    "pyro_vae/report/": {"pyro_vae.evaluate"},
    "pyro_vae/instruments/": {
        "pyro_vae.config",
        "pyro_vae.data",
        "pyro_vae.evaluate",
        "pyro_vae.infer",
        "pyro_vae.report",
        "pyro_vae.runs",
        "pyro_vae.trace",
    },
    "pyro_vae/cli.py": {"pyro_vae.output"},
    "pyro_vae/command_line.py": set(),
    "pyro_vae/output.py": set(),
    "pyro_vae/text.py": set(),
    "pyro_vae/torchrun.py": set(),
}
# Libraries that only certain rooms may import.
HOMES = {
    "arviz": ("pyro_vae/evaluate/likelihood/diagnostics.py", "pyro_vae/report/curves.py"),
    "arviz_stats": ("pyro_vae/evaluate/likelihood/diagnostics.py",),
    "xarray": ("pyro_vae/evaluate/likelihood/diagnostics.py",),
    "matplotlib": ("pyro_vae/report/", "pyro_vae/runs/folder.py", "pyro_vae/instruments/instrument.py"),
    "PIL": ("pyro_vae/runs/folder.py", "pyro_vae/data/formats/image_files.py"),
    "torchvision": ("pyro_vae/data/named/files.py",),
    "sklearn": (
        "pyro_vae/estimator.py",
        "pyro_vae/data/datasets.py",
        "pyro_vae/evaluate/latents/disentanglement.py",
        "pyro_vae/evaluate/features/probe.py",
    ),
    "tyro": (
        "pyro_vae/command_line.py",
        *(f"pyro_vae/config/{name}.py" for name in ("choices", "flags", "groups", "overrides")),
    ),
}


def imports(source: str) -> Iterator[str]:
    """Yield the full name of every import: `from a import b` yields a.b."""
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@cache
def tree_of(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text())


def calls(source: str) -> set[str]:
    """Return the names of all functions called in a module."""
    return {ast.unparse(node.func) for node in ast.walk(tree_of(source)) if isinstance(node, ast.Call)}


def may_import(source: str, name: str) -> bool:
    if within(name, "pyro_vae"):
        room = max((prefix for prefix in ALLOWED if source.startswith(prefix)), key=len)
        own = room.removesuffix("/").removesuffix(".py").replace("/", ".")
        if not any(within(name, each) for each in (*EVERYWHERE, own, *ALLOWED[room])):
            return False
    homes = [places for library, places in HOMES.items() if within(name, library)]
    return not within(name, "scripts") and all(source.startswith(places) for places in homes)


def test_rooms_import_only_allowed_rooms() -> None:
    found = [(source, name) for source in SOURCES for name in imports(source)]
    assert len(found) > 1000
    assert [(source, name) for source, name in found if not may_import(source, name)] == []


def test_library_code_neither_prints_nor_seeds() -> None:
    unwanted = {"print", "pyro.set_rng_seed"}
    # The streams of a member are seeded as those of a run are, and the caller's put back.
    allowed = {"pyro_vae/cli.py", "pyro_vae/command_line.py", "pyro_vae/output.py", "pyro_vae/infer/streams.py"}
    assert {s: calls(s) & unwanted for s in SOURCES if s not in allowed and calls(s) & unwanted} == {}


# Functions that unpickle or execute text. Only `--program` executes a file, the one that its user names.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "np.load", "torch.jit.load", "yaml.load"}
RUNS_A_FILE = {"pyro_vae/config/program_files.py"}


def unsafe(source: str) -> list[str]:
    """Return the calls and imports in a file that unpickle data or execute text."""
    found = [name for name in imports(source) if name.split(".")[0] in UNSAFE_MODULES]
    found += [n.arg for n in ast.walk(tree_of(source)) if isinstance(n, ast.keyword) and n.arg == "weights_only"]
    found += calls(source) & UNSAFE_CALLS
    found += [call for call in calls(source) if "param_store" in call and call.endswith(".load")]
    if source not in RUNS_A_FILE:
        found += [call for call in calls(source) if "exec_module" in call or "import_module" in call]
    return found


def test_nothing_unpickles_or_executes_text() -> None:
    assert {source: unsafe(source) for source in SOURCES + SCRIPTS if unsafe(source)} == {}


def test_prior_is_named_in_one_line_of_the_program() -> None:
    text = (PACKAGE / "model" / "vae.py").read_text()
    assert [line.strip() for line in text.splitlines() if "self.prior(" in line] == [
        'z = pyro.sample("z", self.prior())'
    ]


def test_public_names_have_docstrings() -> None:
    for source in SOURCES + SCRIPTS:
        assert ast.get_docstring(tree_of(source)), source
        for node in ast.walk(tree_of(source)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{source}: {node.name}"
