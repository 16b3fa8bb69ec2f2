"""Compress an archive as Linux' initramfs unpacker takes it, the same bytes for the same input on
every machine.

Linux lib/decompress_unzstd.c (one frame, window of at most 128 MiB), lib/decompress_unlz4.c (the
legacy format), lib/decompress_inflate.c.
"""

import contextlib
import gzip
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from mayfly.errors import HostError, ImageError

Write = Callable[[bytes], object]
ZSTD_LEVEL = 9
ZSTD_WINDOW_LOG = 23
"""8 MiB: the guest's kernel allocates the window while it unpacks. 27 is the most that Linux
takes.
"""
ZSTD_JOB = 16 << 20
"""Bytes that one thread compresses: small enough that none is idle at the beginning or the end."""
GZIP_LEVEL = 6
LZ4_LEVEL = 9


@contextlib.contextmanager
def compressor(kind: str, file: BinaryIO) -> Iterator[Write]:
    """Give a function that compresses what it is given into `file`; the end is written when the
    context is left without an error.

    Raises:
        ImageError: `kind` is none of `zstd`, `lz4`, `gzip`, `none`.
        HostError: the program that is needed is not there, or failed.
    """
    match kind:
        case "zstd":
            opened = _zstd(file)
        case "lz4":
            opened = _lz4(file)
        case "gzip":
            opened = _gzip(file)
        case "none":
            opened = _none(file)
        case _:
            raise ImageError(f"compression {kind!r} is not known", hint="take zstd, lz4, gzip or none")
    with opened as write:
        yield write


@contextlib.contextmanager
def _zstd(file: BinaryIO) -> Iterator[Write]:
    # Worker threads cut the input at fixed places, so their number does not show in the output;
    # none at all would.
    threads = max(1, len(os.sched_getaffinity(0)))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, window_log=ZSTD_WINDOW_LOG, threads=threads, job_size=ZSTD_JOB, write_checksum=True, write_content_size=False
    )
    # One compressobj from first byte to last makes exactly one frame; Linux reads no further than
    # that.
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    yield lambda data: file.write(stream.compress(data))
    file.write(stream.flush())


@contextlib.contextmanager
def _none(file: BinaryIO) -> Iterator[Write]:
    yield file.write


@contextlib.contextmanager
def _gzip(file: BinaryIO) -> Iterator[Write]:
    with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as stream:
        yield stream.write


@contextlib.contextmanager
def _lz4(file: BinaryIO) -> Iterator[Write]:
    try:
        process = subprocess.Popen(["lz4", "-l", f"-{LZ4_LEVEL}", "-c", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        raise HostError(f"lz4 cannot be started: {error.strerror}", hint="apt-get install lz4, or take --compress zstd") from error
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 (both are pipes)
    out = process.stdout
    failed: list[OSError] = []

    def drain() -> None:
        try:
            while data := out.read(1 << 20):
                file.write(data)
        except OSError as error:  # the disk is full: the one who writes to lz4 learns of it by a broken pipe
            failed.append(error)
            process.kill()

    drainer = threading.Thread(target=drain)
    drainer.start()
    try:
        yield process.stdin.write
        process.stdin.close()
    except BaseException as error:
        process.kill()
        if failed and isinstance(error, BrokenPipeError):
            raise failed[0] from error
        raise
    finally:
        drainer.join()
        out.close()
        status = process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    if failed:
        raise failed[0]
    if status != 0:
        raise HostError(f"lz4 ended with status {status}", hint="take --compress zstd")
