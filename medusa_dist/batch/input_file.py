"""InputFile: the bytes of a batch job's input as lines, whatever it is stored in.

Owns encodings that are refused, compression, and standard input. Not here: where lines end and what they mean
(storage/batch_lines.py). A job reads its input several times, so what can be read only once is copied to a temporary
file.
"""

import gzip
import io
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow

from medusa_dist.errors import ConfigError
from medusa_dist.storage.batch_lines import RawLine, raw_lines

BUFFER_BYTES = 2**20
STDIN = Path("-")
# By their first bytes, because names are often wrong; longer ones before their own beginnings.
_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_REFUSED = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"PAR1": "a Parquet file",
}
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class InputFile:
    """path: of a regular file. name: for messages."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)

    def lines(self) -> Iterator[RawLine]:
        """All lines but blank ones. Raises ConfigError for a file that cannot be read, or is no UTF-8 text."""
        try:
            with closing(self._open()) as file:
                yield from raw_lines(file)
        except (EOFError, zlib.error, OSError) as error:
            raise ConfigError(f"{self.name} cannot be read: {_cause(error)}") from None

    def _open(self) -> BinaryIO:
        file = _buffered(self.path.open("rb"))
        unpack = _unpacking(file.peek(16))
        if unpack is not None:
            file = _buffered(unpack(file))
        head = file.peek(16)
        if unpack is not None and _unpacking(head) is not None:
            raise ConfigError(f"{self.name} is compressed twice; decompress it once")
        for magic, what in _REFUSED.items():
            if head.startswith(magic):
                raise ConfigError(f"{self.name} is {what}; give JSON lines, plain or compressed by gzip or zstd")
        if encoding := _encoding(head):
            raise ConfigError(f"{self.name} is in {encoding}; save it as UTF-8 (iconv -f {encoding} -t UTF-8)")
        return file


def _buffered(raw: object) -> io.BufferedReader:
    return io.BufferedReader(raw, BUFFER_BYTES)  # type: ignore[arg-type]  # whatever has readinto


def _unpacking(head: bytes) -> Callable[[BinaryIO], object] | None:
    if head.startswith(_GZIP):
        return lambda file: gzip.GzipFile(fileobj=file)
    if head.startswith(_ZSTD):
        return lambda file: pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    return None


def _encoding(head: bytes) -> str | None:
    """An encoding other than UTF-8: by its mark, or by the zero bytes of its ASCII characters."""
    for mark, name in _ENCODINGS.items():
        if head.startswith(mark):
            return name
    if b"\0" not in head[:4]:
        return None
    return "UTF-32" if head[:4].count(0) == 3 else "UTF-16"


def _cause(error: Exception) -> str:
    if isinstance(error, EOFError) or "Truncated" in str(error):
        return "its compressed data ends too early"
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def open_input(path: Path) -> Iterator[InputFile]:
    """The input at a path, or standard input for "-"; pipes are copied to a temporary file first.

    Raises ConfigError if there is none.
    """
    if path == STDIN:
        with _copied(sys.stdin.buffer, "standard input") as copy:
            yield copy
    elif path.is_fifo() or path.is_char_device():
        with path.open("rb") as file, _copied(file, str(path)) as copy:
            yield copy
    else:
        yield InputFile(path)


@contextmanager
def _copied(file: BinaryIO, name: str) -> Iterator[InputFile]:
    with tempfile.NamedTemporaryFile(prefix="medusa-dist-batch-") as copy:
        try:
            shutil.copyfileobj(file, copy, BUFFER_BYTES)
            copy.flush()
        except OSError as error:
            raise ConfigError(f"{name} cannot be copied to {copy.name}: {error.strerror}") from None
        yield InputFile(Path(copy.name), name)
