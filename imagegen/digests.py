"""Digests, `sha256:HEX` or `sha512:HEX` (OCI image-spec, descriptor.md, Digests)."""

import hashlib
import re
from pathlib import Path
from typing import BinaryIO, Protocol

DIGEST = r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
"""Those of algorithms that are known here, as a regular expression."""
_CHUNK = 1 << 20


class Hasher(Protocol):
    """What hashlib gives."""

    @property
    def name(self) -> str:
        """The algorithm."""
        ...

    def update(self, data: bytes, /) -> None:
        """Hash more bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""
        ...


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of an algorithm that is known here."""
    return re.fullmatch(DIGEST, text) is not None


def hasher_for(digest: str) -> Hasher:
    """A new hasher of the algorithm of `digest`."""
    return hashlib.new(digest.partition(":")[0])


def spell(hasher: Hasher) -> str:
    """The digest of what `hasher` was given."""
    return f"{hasher.name}:{hasher.hexdigest()}"


def digest_of(data: bytes, like: str = "sha256:") -> str:
    """The digest of `data`, by the algorithm of the digest `like`."""
    hasher = hasher_for(like)
    hasher.update(data)
    return spell(hasher)


def digest_of_file(file: BinaryIO, like: str) -> str:
    """The digest of what is left to read of a file, by the algorithm of the digest `like`."""
    hasher = hasher_for(like)
    while data := file.read(_CHUNK):
        hasher.update(data)
    return spell(hasher)


def blob_path(blobs: Path, digest: str) -> Path:
    """Where a blob is in a layout's or the cache's folder (image-layout.md, Blobs)."""
    algorithm, _, encoded = digest.partition(":")
    return blobs / algorithm / encoded


def short(digest: str) -> str:
    """The first letters of the hash, for a person."""
    return digest.partition(":")[2][:12]
