"""Compressed archives: what Linux' unpacker asks of each format, and the same bytes each time."""

import gzip
import io
import os
import struct
import subprocess
from pathlib import Path

import pytest
import zstandard

from mayfly.errors import HostError, ImageError
from mayfly.imagegen.rootfs.compress import compressor
from mayfly.imagegen.rootfs.unpack import _reader

DATA = b"".join(struct.pack("<QQ", n, n * n % 1009) for n in range(600_000)) + os.fsencode("end")


def _compress(kind: str, piece: int = 1 << 20, data: bytes = DATA) -> bytes:
    out = io.BytesIO()
    with compressor(kind, out) as write:
        for at in range(0, len(data), piece):
            write(data[at : at + piece])
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "program"), [("zstd", ["zstd", "-dc"]), ("lz4", ["lz4", "-dc"]), ("gzip", ["gzip", "-dc"]), ("none", ["cat"])]
)
def test_the_usual_program_reads_it_back(kind: str, program: list[str]) -> None:
    packed = _compress(kind)
    assert subprocess.run(program, input=packed, capture_output=True, check=True).stdout == DATA
    assert kind == "none" or len(packed) < len(DATA)


@pytest.mark.parametrize("kind", ["zstd", "lz4", "gzip", "none"])
def test_the_size_of_the_pieces_does_not_show(kind: str) -> None:
    assert _compress(kind) == _compress(kind, 77_777)


def test_zstd_is_one_frame_with_a_window_that_linux_takes() -> None:
    packed = _compress("zstd")
    parameters = zstandard.get_frame_parameters(packed)
    assert parameters.window_size <= 128 << 20
    assert parameters.has_checksum
    decoder = zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj(read_across_frames=False)
    assert decoder.decompress(packed) == DATA
    assert decoder.unused_data == b""


def test_the_number_of_processors_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for count in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: set(range(count)))
        seen.add(_compress("zstd", data=DATA * 12))
    assert len(seen) == 1


def test_lz4_is_the_legacy_format() -> None:
    assert _compress("lz4")[:4] == struct.pack("<I", 0x184C_2102)


def test_gzip_has_no_time_and_no_name() -> None:
    packed = _compress("gzip")
    assert packed[3:8] == bytes(5)  # flags, then the time (RFC 1952, 2.3)
    assert gzip.decompress(packed) == DATA


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(ImageError, match="'xz'"):
        _compress("xz")


@pytest.mark.parametrize(("made", "reason"), [(False, "No such file or directory"), (True, "Permission denied")])
def test_a_program_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: bool, reason: str) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(b"")
    if made:
        (tmp_path / "lz4").write_text("not executable")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=f"lz4 cannot be started: {reason}") as caught:
        _compress("lz4")
    assert "--compress zstd" in caught.value.hint
    with pytest.raises(HostError, match=f"lz4 cannot be started: {reason}"), _reader(packed, "lz4"):
        pass


@pytest.mark.parametrize("kind", ["zstd", "lz4", "gzip", "none"])
def test_an_error_in_the_middle_comes_through(kind: str) -> None:
    with pytest.raises(RuntimeError, match="mine"), compressor(kind, io.BytesIO()) as write:
        write(DATA)
        raise RuntimeError("mine")
