"""Input files of all kinds give the same lines: marks, compression, ends of lines, pipes; the rest is refused."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import threading
import tracemalloc
import zipfile

import pyarrow
import pytest

from medusa_dist.batch.files import check_input, read_lines
from medusa_dist.batch.input_file import InputFile, open_input
from medusa_dist.errors import ConfigError
from medusa_dist.storage import batch_lines as module
from medusa_dist.storage.batch_lines import RawLine
from tests.support.batch_lines import line, write

TEXT = b'{"custom_id": "\xc3\xa9"}\n\n  \n{"b": 2}\n{"c": 3}'
LINES = [RawLine(1, b'{"custom_id": "\xc3\xa9"}'), RawLine(4, b'{"b": 2}'), RawLine(5, b'{"c": 3}')]


def zstd(data: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as file:
        file.write(data)
    return out.getvalue().to_pybytes()


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("in.jsonl", data)
    return out.getvalue()


def lines_of(tmp_path, data: bytes, name: str = "in.jsonl") -> list[RawLine]:
    (tmp_path / name).write_bytes(data)
    return list(InputFile(tmp_path / name).lines())


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT + b"\n",
        codecs.BOM_UTF8 + TEXT,
        TEXT.replace(b"\n", b"\r\n"),
        codecs.BOM_UTF8 + TEXT.replace(b'{"b', codecs.BOM_UTF8 + b'{"b'),
        gzip.compress(TEXT),
        gzip.compress(TEXT[:20]) + gzip.compress(TEXT[20:]),
        gzip.compress(codecs.BOM_UTF8 + TEXT),
        zstd(TEXT),
        zstd(TEXT[:20]) + zstd(TEXT[20:]),
    ],
    ids=["plain", "end", "mark", "crlf", "joined", "gzip", "two gzips", "mark in gzip", "zstd", "two zstds"],
)
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.txt"])
def test_each_kind_of_file_gives_the_same_lines_whatever_its_name(tmp_path, data, name):
    assert lines_of(tmp_path, data, name) == LINES


def test_a_file_has_the_same_ids_however_it_is_stored(tmp_path):
    write(tmp_path / "a", [line("a"), line("b")])
    plain = [one.id for one in read_lines(InputFile(tmp_path / "a"), 5)]
    (tmp_path / "b").write_bytes(gzip.compress(codecs.BOM_UTF8 + (tmp_path / "a").read_bytes()))
    assert [one.id for one in read_lines(InputFile(tmp_path / "b"), 5)] == plain


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.decode().encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        (TEXT.decode().encode("utf-16-le"), "is in UTF-16; save it as UTF-8"),
        (TEXT.decode().encode("utf-16-be"), "is in UTF-16; save it as UTF-8"),
        (TEXT.decode().encode("utf-32"), "is in UTF-32; save it as UTF-8"),
        (TEXT.decode().encode("utf-32-be"), "is in UTF-32; save it as UTF-8"),
        (gzip.compress(TEXT.decode().encode("utf-16")), "is in UTF-16; save it as UTF-8"),
        (gzip.compress(gzip.compress(TEXT)), "is compressed twice"),
        (gzip.compress(TEXT)[:-9], "cannot be read: its compressed data ends too early"),
        (zstd(TEXT * 100)[:-9], "cannot be read: its compressed data ends too early"),
        (gzip.compress(TEXT) + b"tail", "cannot be read: Not a gzipped file"),
        (bz2.compress(TEXT), "is compressed by bzip2; give JSON lines, plain or compressed by gzip or zstd"),
        (lzma.compress(TEXT), "is compressed by xz"),
        (zipped(TEXT), "is a zip archive"),
        (b"", "is empty; a batch file has one JSON object per line"),
        (codecs.BOM_UTF8 + b"\n", "is empty"),
        (gzip.compress(b""), "is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, data, message):
    (tmp_path / "in.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        check_input(InputFile(tmp_path / "in.jsonl"), 0)


def test_a_folder_or_nothing_is_no_input(tmp_path):
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
        with pytest.raises(ConfigError, match=message):
            check_input(InputFile(path), 0)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_line_of_50_mb_is_read_in_its_own_size(tmp_path, pack):
    text = b'{"custom_id": "' + b"x" * 50_000_000 + b'"}'
    (tmp_path / "in.jsonl").write_bytes(pack(text + b"\n{}"))
    tracemalloc.start()
    sizes = [len(one.data) for one in InputFile(tmp_path / "in.jsonl").lines()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes == [len(text), 2] and peak < 4 * len(text)


def test_a_line_beyond_the_limit_fails_alone_and_is_never_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr(module, "BUFFER_BYTES", 2**16)
    good = json_line = b'{"custom_id": "a", "url": "/v1/completions", "body": {}}'
    for end in (b"\n", b""):
        (tmp_path / "in.jsonl").write_bytes(good + b"\n" + b"x" * 20_000_000 + b"\n" + json_line + end)
        tracemalloc.start()
        first, long, last = read_lines(InputFile(tmp_path / "in.jsonl"), 0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert long.problem == "line 2 is longer than 1 MiB" and peak < 5_000_000
        assert (first.number, last.number) == (1, 3) and first.problem is last.problem is None
    exact = b"x" * 2**20
    assert [one.is_whole for one in lines_of(tmp_path, exact + b"\n" + exact + b"x\n" + exact)] == [True, False, True]


def test_a_pipe_is_copied_and_can_be_read_twice(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(gzip.compress(TEXT)))
    writer.start()
    with open_input(pipe) as source:
        assert list(source.lines()) == list(source.lines()) == LINES
        assert source.name == str(pipe) and source.path != pipe
    writer.join()
    assert not source.path.exists()
