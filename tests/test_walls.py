"""Walls: who may import whom, where outside libraries are used, and how large things may grow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medusa_dist"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# Each part may import those below it; parts in one row are siblings and do not know each other. A part is a folder or a
# file of the package; the longest name that fits a file is its part.
LAYERS = [
    {"cli"},
    {"app"},
    {"batch", "bench", "check", "heads_tools", "top", "training"},
    {"tools"},
    {"llm"},
    {"llm_backend", "offline"},
    {"api", "serve"},
    {"storage", "tracing"},
    {"engine.startup"},
    {"engine"},
    {"engine.scheduler"},
    {"engine.spec", "engine.drafters"},
    {"engine.beam"},
    {"engine.state", "engine.runner"},
    {"medusa", "medusa.beam"},
    {"medusa.published"},
    {"medusa.heads"},
    {"medusa.eagle3"},
    {"medusa.trees", "model"},
    {"model.source"},
    {"ops.attention"},
    {"ops.gpu"},
    {"ops"},
    {"text"},
    {"config", "request"},
    {"config_parts"},
    {"sampling_params"},
    {"outputs"},
    {"sampling_fields"},
    {"grammar", "named_trees"},
    {"json_schema"},
    {"errors"},
]
PARTS = [part for row in LAYERS for part in row]
READS_PT = "heads_tools/convert_heads.py"


def module_of(path: Path) -> str:
    """Dotted name below medusa_dist; a folder's __init__ is the folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def part_of(module: str) -> str:
    return max((p for p in PARTS if module == p or module.startswith(f"{p}.")), key=len)


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


MODULES = {module_of(path): path for path in FILES}


def ours(path: Path) -> set[str]:
    """The modules of the package that a file imports, function-local imports and those for type checkers too."""
    found = set()
    for name in imports(TREES[path]):
        if name.split(".")[0] == "medusa_dist":
            module = name.removeprefix("medusa_dist").lstrip(".")
            found.add(module if module in MODULES else module.rpartition(".")[0])
    return found


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
    if path == PACKAGE / "__init__.py":
        return  # lazy: only names for type checkers
    mine = part_of(module_of(path))
    for module in ours(path) - {""}:
        theirs = part_of(module)
        assert theirs == mine or level(theirs) > level(mine), f"{mine} imports {module}, which is not below it"


def test_no_two_files_import_each_other_in_a_circle() -> None:
    arrows = {module: ours(path) for module, path in MODULES.items() if module}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for other in sorted(arrows.get(module, set())):
                visit(other, (*above, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


def test_followers_execute_and_decide_nothing() -> None:
    """engine/runner is what every rank runs: it must not see rank 0's sequences, blocks, drafts or decisions."""
    rank0 = ("engine.state", "engine.beam", "engine.spec", "engine.scheduler", "engine.startup", "medusa")
    for module, path in MODULES.items():
        if part_of(module or "errors") == "engine.runner":
            assert not [other for other in ours(path) if other.startswith(rank0)], module


def test_outside_libraries_are_imported_only_in_their_folders() -> None:
    assert {name.split("/")[0] for name in users_of("ray")} <= {"app.py", "serve", "batch", "check", "training"}
    assert {name.split("/")[0] for name in users_of("fastapi")} <= {"app.py", "api"}
    torch_users = {name.split("/")[0] for name in users_of("torch")}
    assert torch_users <= {"ops", "model", "medusa", "engine", "bench", "check", "training", "heads_tools"}
    assert users_of("triton") == {"ops/gpu/language.py"}, "it may be missing, and that file has placeholders"
    transformers_users = {name.split("/")[0] for name in users_of("transformers")}
    assert transformers_users <= {"model", "engine", "llm.py", "serve", "bench", "tools", "check", "training"}
    assert users_of("pickle") | users_of("cloudpickle") | users_of("dill") == {READS_PT}
    assert "pickle.UnpicklingError" in imports(TREES[PACKAGE / READS_PT]), "the error's name and nothing else of it"


def test_function_local_imports_occur_only_in_the_command_line() -> None:
    """In the command line alone, so that --help is fast."""
    for path, tree in TREES.items():
        local = [
            node.lineno
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not local or path.parent == PACKAGE / "cli", (path, local)


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
def test_files_functions_and_folder_depth_stay_within_their_limits(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    assert len(path.relative_to(PACKAGE).parts) <= 3, "folders are at most two deep"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert body_lines(node) <= 50, f"{node.name} has {body_lines(node)} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_has_a_module_docstring(path: Path) -> None:
    assert ast.get_docstring(TREES[path]), "a module docstring says what it owns and what it does not"


# Files of other projects that docstrings cite as a source.
CITED = {"medusa_choices.py", "medusa_model.py", "generation/utils.py", "layers/medusa.py", "models/medusa.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_point_to_files_that_exist(path: Path) -> None:
    """A pointer is relative to the file's folder, to the one above, to the package, or to the repository."""
    for pointer in re.findall(r"[\w/]+\.py\b", ast.get_docstring(TREES[path]) or ""):
        places = (path.parent, path.parent.parent, PACKAGE, ROOT)
        known = any((place / pointer).is_file() for place in places) or pointer.endswith(tuple(CITED))
        assert known or pointer == "speculative/plugins/transformers.py", pointer


def public_names(tree: ast.Module) -> list[str]:
    """Classes, functions, methods and fields without a leading underscore."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.ClassDef):
            names += [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def test_public_class_names_are_unique() -> None:
    owners: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(module_of(path))
    assert not {name: where for name, where in owners.items() if len(where) > 1}


# Words with several meanings, or of our own, and what to say (docs/architecture.md has the glossary).
OVERLOADED = {
    "verdict": "result",
    "judge": "select",
    "rested": "paused",
    "resting": "paused",
    "fell": "failed",
    "falls": "failures",
    "stands": "frontier",
    "behind": "after",
    "believe": "calibrated",
    "chains": "num_new_tokens",
    "wanted": "needs_logits, or what is meant",
    "band": "sampling_mode",
    "promises": "expected",
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_overloaded_words_stay_out_of_public_names(path: Path) -> None:
    for name in public_names(TREES[path]):
        words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)}
        assert not words & OVERLOADED.keys(), f"{name}: say {[OVERLOADED[w] for w in words & OVERLOADED.keys()]}"
        assert name not in ("slot", "slots"), "a KV slot is part of a slot_mapping; a sequence has a batch_index"


def test_engine_step_reads_as_schedule_verify_accept_emit_draft() -> None:
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
        ("medusa_dist.cli.main", ("torch", "transformers", "ray")),  # and with it cli/heads.py and cli/options.py
        ("medusa_dist.config", ("torch", "transformers", "ray")),
        ("medusa_dist.request", ("torch", "transformers", "ray", "pydantic")),
        ("medusa_dist.serve.autoscaling", ("torch", "transformers", "pydantic")),  # runs in Serve's controller
        ("medusa_dist.text.text_stream", ("torch",)),
        ("medusa_dist.serve.rank", ("torch",)),  # a rank's thread count must be set before torch is loaded
        ("medusa_dist.medusa.trees.accept", ("ray",)),
    ],
)
def test_importing_a_module_does_not_load_heavy_libraries(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: str(p.relative_to(ROOT)))
def test_folder_has_at_most_twelve_files(folder: Path) -> None:
    assert len([path for path in FILES if path.parent == folder and path.stem != "__init__"]) <= 12


def test_unit_tests_mirror_the_package() -> None:
    """tests/unit/<folder>/test_<file>.py tests medusa_dist/<folder>/<file>.py; what joins several is in end_to_end/."""
    for path in (ROOT / "tests" / "unit").rglob("test_*.py"):
        tested = path.relative_to(ROOT / "tests" / "unit").with_name(f"{path.stem.removeprefix('test_')}.py")
        assert (PACKAGE / tested).is_file(), path


def test_no_test_imports_from_a_test() -> None:
    """What several tests need is in tests/support/."""
    for path in (ROOT / "tests").rglob("*.py"):
        borrowed = [name for name in imports(ast.parse(path.read_text())) if ".test_" in f".{name}"]
        assert not borrowed, (path, borrowed)
