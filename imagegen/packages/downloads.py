"""What a package registry has: documents, and files that are checked against their digests. Both
are kept in the cache, so that a build can be made again without the registry.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import requests

from mayfly.errors import RegistryError
from mayfly.files import atomic_write, storing
from mayfly.imagegen.digests import blob_path, digest_of_file, hasher_for, short, spell
from mayfly.imagegen.oci.client import TRANSIENT, Client, body, origin_of, persistently, transient
from mayfly.imagegen.progress import Progress
from mayfly.paths import cache_dir

_T = TypeVar("_T")
MAX_DOCUMENT = 64 << 20
"""Bytes of a document: what is known of all versions of a package."""
_NO_REGISTRY = "is it up, and is the network? Another one: --packages-from URL"
_LIES = "the package registry is damaged or lies; do not use it"


class Downloads:
    """Fetches from the package registry at the address `base`, without an account; `pause` waits
    between two tries.

    `offline` asks nothing: what an earlier build fetched is in the cache.
    """

    def __init__(self, base: str, *, offline: bool, progress: Progress, pause: Callable[[float], None] = time.sleep) -> None:
        self.base = base.rstrip("/")
        self._offline = offline
        self._progress = progress
        self._pause = pause
        self._client = Client(base, lambda: None, "")

    def document(self, url: str, accept: str = "*/*") -> bytes | None:
        """The document at an address, or None where the registry has none.

        Raises:
            RegistryError: it cannot be had.
        """
        path = cache_dir() / "blobs/documents" / hashlib.sha256(f"{accept} {url}".encode()).hexdigest()
        if self._offline:
            if not path.exists():
                raise RegistryError(f"{url} is not in the cache", hint="build the image once without --offline")
            return path.read_bytes() or None

        def fetch() -> bytes:
            with self._get(url, accept) as response:
                return b"" if response.status_code in (404, 410) else b"".join(body(response, MAX_DOCUMENT))

        data = self._persistently(fetch, url)
        with storing(path), atomic_write(path) as file:
            file.write(data)
        return data or None

    def file(self, url: str, digest: str, limit: int, name: str = "") -> Path:
        """A file of the cache with what is at an address, of this digest and of at most `limit`
        bytes; called `name` where it says that it is pulled.

        Raises:
            RegistryError: it cannot be had, or is another one.
        """
        path = blob_path(cache_dir() / "blobs", digest)
        if path.exists():
            with path.open("rb") as file:
                if digest_of_file(file, digest) == digest:
                    return path
        if self._offline:
            raise RegistryError(f"{url} is not in the cache", hint="build the image once without --offline")

        def fetch() -> None:
            hasher = hasher_for(digest)
            with self._get(url, "*/*") as response, self._progress.task(f"pulling {name or url.rpartition('/')[2]}", None) as advance:
                if response.status_code != 200:
                    raise RegistryError(f"{url} is not there", hint=_LIES)
                with storing(path), atomic_write(path) as file:
                    for data in body(response, limit):
                        hasher.update(data)
                        file.write(data)
                        advance(len(data))
                    if spell(hasher) != digest:
                        raise RegistryError(f"{url} hashes to {short(spell(hasher))}…, not to {digest}", hint=_LIES)

        self._persistently(fetch, url)
        return path

    def _get(self, url: str, accept: str) -> requests.Response:
        response = self._client.request("GET", url, {"Accept": accept})
        if response.status_code in (200, 404, 410):
            return response
        if response.status_code in TRANSIENT:
            raise transient(origin_of(url).host, response)
        response.close()
        raise RegistryError(f"{url}: the package registry answers {response.status_code}", hint="see --packages-from")

    def _persistently(self, work: Callable[[], _T], url: str) -> _T:
        return persistently(work, url, _NO_REGISTRY, self._progress, self._pause)
