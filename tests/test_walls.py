"""Walls: who may import whom, where outside libraries are used, and how large things may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medusa_dist"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# Each part may import those below it; parts in one row are siblings and do not know each other.
LAYERS = [
    {"cli"},
    {"cli_heads", "cli_train"},
    {"cli_parts"},
    {"app"},
    {"jobs"},
    {"llm"},
    {"llm_backend"},
    {"api", "serve"},
    {"engine"},
    {"medusa", "model"},
    {"ops"},
]
READS_PT = "jobs/convert_heads.py"
FREE = {
    "beam_fields",
    "config",
    "errors",
    "grammar",
    "request",
    "",
}  # importable by all; "": the package's lazy __init__
DATA = "medusa_dist.medusa.named_trees."  # imports nothing; config.py looks names up in it


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py").replace("__init__", "")


def imports(tree: ast.AST) -> list[str]:
    """Full names of all imported modules, function-local ones too."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def level(part: str) -> int:
    return next(i for i, row in enumerate(LAYERS) if part in row)


def users_of(library: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path, tree in TREES.items()
        if any(name.split(".")[0] == library for name in imports(tree))
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    mine = part_of(path)
    ours = [name for name in imports(TREES[path]) if name.split(".")[0] == "medusa_dist"]
    if mine == "config":
        ours = [name for name in ours if not name.startswith(DATA)]
    theirs = {name.split(".")[1] if len(name.split(".")) > 2 else "" for name in ours} - {mine}
    if mine in FREE - {""}:
        assert theirs <= FREE, f"{mine} imports {theirs - FREE}"
        return
    if mine == "":
        return  # lazy: only names for type checkers
    for other in theirs - FREE:
        assert level(other) > level(mine), f"{mine} imports {other}, which is not below it"


def test_outside_libraries_stay_where_they_belong() -> None:
    assert {name.split("/")[0] for name in users_of("ray")} <= {"app.py", "serve", "jobs"}
    assert {name.split("/")[0] for name in users_of("fastapi")} <= {"app.py", "api"}
    torch_users = {name.split("/")[0] for name in users_of("torch")}
    assert torch_users <= {"ops", "model", "medusa", "engine", "jobs"}
    assert {name.split("/")[0] for name in users_of("transformers")} <= {"model", "engine", "llm.py", "serve", "jobs"}
    assert users_of("pickle") | users_of("cloudpickle") | users_of("dill") == {READS_PT}
    assert "pickle.UnpicklingError" in imports(TREES[PACKAGE / READS_PT]), "the error's name and nothing else of it"


def test_imports_inside_functions() -> None:
    """In the command line, so that --help is fast, and in ops/attention.py, for kernels that may not be there."""
    may = ("cli.py", "cli_heads.py", "cli_train.py", "cli_parts.py", "ops/attention.py")
    for path, tree in TREES.items():
        local = [
            node.lineno
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not local or path.relative_to(PACKAGE).as_posix() in may, (path, local)


def test_nothing_unpickles_what_came_over_a_wire() -> None:
    """torch.distributed's object collectives and torch.load pickle; plans are integers, weights are safetensors.

    Published heads come as .pt files, too: one file reads those, and lets torch make tensors only.
    """
    forbidden = ("recv_pyobj", "send_pyobj", "_object_list", "gather_object", "torch.load")
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                reads_pt = path == PACKAGE / READS_PT and "weights_only=True" in ast.unparse(node)
                assert not name.endswith(forbidden) or reads_pt, f"{path}: {name}"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring left out."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    assert len(path.relative_to(PACKAGE).parts) <= 2, "folders are one deep"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert body_lines(node) <= 50, f"{node.name} has {body_lines(node)} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(TREES[path]), "a module docstring says what it owns and what it does not"


def test_the_hot_loop_reads_as_five_parts() -> None:
    engine = next(n for n in TREES[PACKAGE / "engine" / "engine.py"].body if isinstance(n, ast.ClassDef))
    step = next(n for n in engine.body if isinstance(n, ast.FunctionDef) and n.name == "step")
    assert (step.end_lineno or 0) - step.lineno + 1 <= 15
    calls = [ast.unparse(n.func) for n in ast.walk(step) if isinstance(n, ast.Call)]
    parts = [call.removeprefix("self._") for call in calls]
    assert parts == ["schedule", "verify", "accept", "emit", "draft"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("medusa_dist", ("torch", "transformers", "ray", "pydantic")),
        ("medusa_dist.cli", ("torch", "transformers", "ray")),  # and with it cli_heads and cli_parts
        ("medusa_dist.config", ("torch", "transformers", "ray")),
        ("medusa_dist.request", ("torch", "transformers", "ray", "pydantic")),
        ("medusa_dist.serve.autoscaling", ("torch", "transformers", "pydantic")),  # runs in Serve's controller
        ("medusa_dist.engine.text", ("torch",)),
        ("medusa_dist.medusa.accept", ("ray",)),
    ],
)
def test_what_an_import_does_not_load(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_tests_mirror_the_package() -> None:
    """tests/<folder>/test_<file>.py tests medusa_dist/<folder>/<file>.py, or says by its name that it joins several."""
    joining = {"test_openai_client", "test_batch_serve", "test_scaling_on_ray"}
    for path in ROOT.glob("tests/*/test_*.py"):
        folder = path.parent.name
        if folder in ("chaos",) or path.stem in joining:
            continue
        assert (PACKAGE / folder / f"{path.stem.removeprefix('test_')}.py").is_file(), path
