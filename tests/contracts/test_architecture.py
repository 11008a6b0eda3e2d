"""The layering, held by walking the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyro_vae"
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").glob("*.py"))

# Each room and what of ours it may import, besides itself, errors and text; the longest matching prefix counts.
ALLOWED = {
    "pyro_vae/__init__.py": {
        "pyro_vae.config",
        "pyro_vae.data",
        "pyro_vae.evaluate",
        "pyro_vae.infer",
        "pyro_vae.model",
        "pyro_vae.runs",
        "pyro_vae.trace",
    },
    "pyro_vae/errors.py": set(),
    "pyro_vae/data/": set(),
    "pyro_vae/model/": set(),
    "pyro_vae/trace/": set(),
    "pyro_vae/infer/": {"pyro_vae.trace"},
    "pyro_vae/evaluate/": {"pyro_vae.trace"},
    "pyro_vae/config/": {"pyro_vae.data", "pyro_vae.infer", "pyro_vae.model"},
    "pyro_vae/runs/": {"pyro_vae.config", "pyro_vae.data", "pyro_vae.evaluate", "pyro_vae.infer", "pyro_vae.trace"},
    "pyro_vae/report/": {"pyro_vae.evaluate"},
    "pyro_vae/instruments/": {
        "pyro_vae.config",
        "pyro_vae.evaluate",
        "pyro_vae.report",
        "pyro_vae.runs",
        "pyro_vae.trace",
    },
    "pyro_vae/cli.py": set(),
    "pyro_vae/text.py": set(),
}
# Libraries that stay in their rooms.
HOMES = {
    "arviz": ("pyro_vae/evaluate/likelihood/diagnostics.py", "pyro_vae/runs/netcdf.py", "pyro_vae/report/curves.py"),
    "arviz_stats": ("pyro_vae/evaluate/likelihood/diagnostics.py",),
    "xarray": ("pyro_vae/evaluate/likelihood/diagnostics.py",),
    "matplotlib": ("pyro_vae/report/", "pyro_vae/runs/folder.py", "pyro_vae/instruments/instrument.py"),
    "PIL": ("pyro_vae/runs/folder.py", "pyro_vae/data/folders.py"),
    "torchvision": ("pyro_vae/data/datasets.py", "pyro_vae/report/images.py"),
    "sklearn": (
        "pyro_vae/data/datasets.py",
        "pyro_vae/evaluate/latents/disentanglement.py",
        "pyro_vae/evaluate/features/probe.py",
    ),
    "tyro": ("pyro_vae/config/flags.py",),
}


def imports(source: str) -> Iterator[str]:
    """Yield every imported name, in full: `from a import b` is a.b."""
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("source", SOURCES)
def test_a_room_imports_only_what_it_may(source: str) -> None:
    room = max((prefix for prefix in ALLOWED if source.startswith(prefix)), key=len)
    for name in imports(source):
        assert not within(name, "scripts"), f"{source} imports {name}"
        if within(name, "pyro_vae"):
            own = room.removesuffix("/").removesuffix(".py").replace("/", ".")
            may = {"pyro_vae.errors", "pyro_vae.text", own, *ALLOWED[room]}
            assert any(within(name, allowed) for allowed in may), f"{source} imports {name}"
        for library, homes in HOMES.items():
            assert not within(name, library) or source.startswith(homes), f"{source} imports {name}"


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "pyro_vae/cli.py"])
def test_library_code_neither_prints_nor_seeds(source: str) -> None:
    calls = [n for n in ast.walk(ast.parse((ROOT / source).read_text())) if isinstance(n, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert not names & {"print", "pyro.set_rng_seed"}


# What reads pickles or runs text; `--program` runs the file that its user names, and nothing else does.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "np.load", "torch.jit.load", "yaml.load"}
RUNS_A_FILE = {"pyro_vae/config/program_files.py"}


@pytest.mark.parametrize("source", SOURCES + SCRIPTS)
def test_nothing_reads_pickles_or_runs_text(source: str) -> None:
    assert not {name.split(".")[0] for name in imports(source)} & UNSAFE_MODULES
    tree = ast.parse((ROOT / source).read_text())
    assert "weights_only" not in {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & UNSAFE_CALLS
    assert not [call for call in calls if "param_store" in call and call.endswith(".load")]
    assert source in RUNS_A_FILE or not [call for call in calls if "exec_module" in call or "import_module" in call]


def test_the_prior_is_named_in_one_line_of_the_program() -> None:
    text = (PACKAGE / "model" / "vae.py").read_text()
    assert [line.strip() for line in text.splitlines() if "self.prior(" in line] == [
        'z = pyro.sample("z", self.prior())'
    ]


@pytest.mark.parametrize("source", SOURCES + SCRIPTS)
def test_every_public_name_is_documented(source: str) -> None:
    tree = ast.parse((ROOT / source).read_text())
    assert ast.get_docstring(tree), source
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{source}: {node.name}"
