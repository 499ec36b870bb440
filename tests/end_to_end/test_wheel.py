"""What `make build` makes, as a user gets it: the wheel alone, in a fresh environment, called from an empty folder.

The dependencies are those of the environment that runs the tests, put behind the wheel on the path.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.served import HANG_S, Served, free_port, without_ray

ROOT = Path(__file__).parents[2]
PROMPT = "Why is the sky blue?"
NUM_TOKENS = 24
pytestmark = [pytest.mark.slow, pytest.mark.real]


def run(*command: object, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the source distribution and the wheel that was made of it.

    Built from a copy: setuptools takes what the checkout's egg-info lists from earlier builds, and so hides a gap.
    """
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", folder=copy, env=outside())
    return copy / "dist"


@pytest.fixture(scope="module")
def programs(built, tmp_path_factory) -> Path:
    """bin/ of an environment that the wheel, and nothing of the checkout, is installed in."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    (wheel,) = built.glob("*.whl")
    run(folder / "bin/pip", "install", "--no-deps", "--no-index", wheel, folder=folder, env=outside())
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    behind = folder / "lib" / version / "site-packages" / "dependencies.pth"
    behind.write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return folder / "bin"


def outside(**more: str) -> dict[str, str]:
    """The environment of a shell that knows nothing of the checkout and of the tests' own Ray."""
    inside = ("PYTHONPATH", "VIRTUAL_ENV", "MEDUSA_DIST_API_KEY")
    return {key: value for key, value in without_ray(**more).items() if key not in inside}


def tracked() -> set[str]:
    """Files of the checkout that git does not ignore."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder=ROOT, env=dict(os.environ))
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


def test_wheel_holds_the_package_and_nothing_else(built):
    (path,) = built.glob("*.whl")
    package = {name for name in tracked() if name.startswith("medusa_dist/")}
    assert {"medusa_dist/py.typed", "medusa_dist/data/heads/smollm2-135m/heads.safetensors"} < package
    with zipfile.ZipFile(path) as wheel:
        about = {name for name in wheel.namelist() if re.match(r"medusa_dist-[\d.]+\.dist-info/", name)}
        assert set(wheel.namelist()) - about == package
        assert {name.rsplit("/", 1)[1] for name in about} >= {"METADATA", "LICENSE", "NOTICE", "entry_points.txt"}
        for name in package:
            assert wheel.read(name) == (ROOT / name).read_bytes(), name


def test_source_distribution_holds_only_tracked_files(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert names - made <= tracked()
    folders = ("medusa_dist/", "tests/", "docs/", "serve_configs/", "cluster/")
    assert {name for name in tracked() if name.startswith(folders)} <= names
    assert {"README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "Makefile", "pyproject.toml"} <= names


def test_installed_commands_decode_and_serve_the_demo_model(programs, tmp_path):
    program = programs / "medusa-dist"
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(
        programs / "python", "-c", "import medusa_dist; print(medusa_dist.__file__)", folder=empty, env=outside()
    )
    assert Path(where.strip()).is_relative_to(programs.parent)

    model = run(program, "demo", folder=empty, env=outside()).split(" is in ")[1].strip()
    home = outside(HOME=str(tmp_path), MEDUSA_DIST_CACHE=str(Path(model).parent))
    shown = run(program, "generate", "--prompt", PROMPT, "--max-tokens", NUM_TOKENS, folder=empty, env=home)
    drafts = re.search(r"(\d+) of (\d+) drafts accepted", shown)
    assert drafts is not None and int(drafts[1]) > 0, shown
    assert list(empty.iterdir()) == []

    port = free_port()
    settings = yaml.safe_load((ROOT / "serve_configs/smollm2-cpu.yaml").read_text())
    settings["http_options"]["port"] = port
    config = tmp_path / "smollm2-cpu.yaml"
    config.write_text(yaml.safe_dump(settings))
    served = Served([str(program)], config, empty, home)
    try:
        served.read_until("Ctrl-C to stop")
        body = {
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
        }
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=HANG_S).json()
        assert reply["usage"]["completion_tokens"] == NUM_TOKENS
        assert shown.startswith(reply["choices"][0]["message"]["content"])
        served.end(signal.SIGTERM)
        assert served.process.returncode == 0
    finally:
        if served.process.poll() is None:
            served.end()
