"""Pull from a registry (OCI distribution-spec 1.1): documents and blobs, each checked against its digest and kept by it.

oras does the talking (addresses, tokens). What it leaves to its caller is here: digests, sizes, resuming, time limits, and retries that do
not sleep for minutes (its own decorator would; `__wrapped__` is the request without it).
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import oras.provider  # type: ignore[import-untyped]
import requests
import requests.adapters

from imagegen.oci import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT, Descriptor, digest_of
from imagegen.progress import Advance, Progress
from imagegen.reference import RegistryReference
from mayfly.errors import RegistryError
from mayfly.files import atomic_write, sync_dir

_T = TypeVar("_T")
ATTEMPTS = 6
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 8.0
TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two pieces of an answer."""
CHUNK = 64 << 10
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_REGISTRY = "is it up, and is the network? Without one: scripts/reference-image LANG DIR, then --image oci:DIR"


class _TransientError(Exception):
    """Worth another try; `pause_s` is how long the registry asked us to wait."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class _Adapter(requests.adapters.HTTPAdapter):
    """Puts a time limit on every request, tokens' too: oras sets none."""

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or TIMEOUT_S
        return super().send(request, *args, **kwargs)  # type: ignore[arg-type]


class RegistrySource:
    """An image in a registry. Blobs are kept in `cache`/sha256/HEX, whole and checked; `pause` waits between two tries."""

    def __init__(
        self,
        reference: RegistryReference,
        cache: Path,
        *,
        insecure: bool = False,
        progress: Progress,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        plain = insecure or reference.is_loopback
        self._reference = reference
        self._cache = cache / "sha256"
        self._progress = progress
        self._pause = pause
        self._base = f"{'http' if plain else 'https'}://{reference.endpoint}/v2/{reference.repository}"
        self._client = oras.provider.Registry(hostname=reference.endpoint, insecure=plain)
        for prefix in ("http://", "https://"):
            self._client.session.mount(prefix, _Adapter())

    def root(self) -> tuple[str, bytes]:
        """The manifest or index of the reference's tag or digest.

        Raises:
            RegistryError: no registry, no such image, or not what the digest says.
        """
        wanted = self._reference.digest
        if wanted is not None and (known := self._cached(wanted)) is not None:
            return "", known
        media_type, data = self._retry(lambda: self._manifest(self._reference.target))
        if wanted is not None and digest_of(data) != wanted:
            raise RegistryError(
                f"{self._reference} answers with {digest_of(data)}", hint="the registry is damaged or lies; do not use the image"
            )
        self._keep(data)
        return media_type, data

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or configuration, from the cache or the registry."""
        if (known := self._cached(descriptor.digest)) is not None:
            return known
        if descriptor.media_type in (*MANIFEST_TYPES, *INDEX_TYPES):
            _, data = self._retry(lambda: self._manifest(descriptor.digest))
        else:
            data = self._retry(lambda: self._small_blob(descriptor.digest))
        if digest_of(data) == descriptor.digest:  # if not, the caller refuses it
            self._keep(data)
        return data

    def blob(self, descriptor: Descriptor) -> Path:
        """The path of a blob in the cache; fetched first if need be, going on where a broken download ended.

        Raises:
            RegistryError: it cannot be had, or is not of its digest and size.
        """
        path = self._path(descriptor.digest)
        self._cache.mkdir(parents=True, exist_ok=True)
        if _is_whole(path, descriptor):
            return path
        part = path.with_name(f".{path.name}.part")
        with part.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_whole(path, descriptor):  # another process fetched it while this one waited for the lock
                return path
            title = f"pulling {descriptor.digest[7:19]}"
            with self._progress.task(title, descriptor.size) as advance:
                self._retry(lambda: self._download(descriptor, file, advance))
            os.fsync(file.fileno())
            part.rename(path)
        sync_dir(self._cache)
        return path

    def _download(self, descriptor: Descriptor, file: BinaryIO, advance: Advance) -> None:
        """Bring the part file to its full size, and check it."""
        hasher = hashlib.sha256()
        file.seek(0)
        have = 0
        while data := file.read(CHUNK):
            hasher.update(data)
            have += len(data)
        if have < descriptor.size:
            headers = {"Accept-Encoding": "identity"}
            if have:
                headers["Range"] = f"bytes={have}-"
            with self._get(f"blobs/{descriptor.digest}", headers) as response:
                if have and (response.status_code != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
                    file.truncate(0)  # the registry does not go on where we ask it to: all of it again
                    hasher, have = hashlib.sha256(), 0
                    if response.status_code != 200:
                        raise _TransientError(f"no range of {descriptor.digest} to be had")
                advance(have)
                for data in _body(response, descriptor.size - have):
                    file.write(data)
                    hasher.update(data)
                    have += len(data)
                    advance(len(data))
        file.flush()
        if have < descriptor.size:
            raise _TransientError(f"{descriptor.digest} ended after {have} of {descriptor.size} bytes")
        found = f"sha256:{hasher.hexdigest()}"
        if found != descriptor.digest or have != descriptor.size:
            file.truncate(0)
            raise RegistryError(
                f"asked for {descriptor.digest} of {descriptor.size} bytes, got {found} of {have}",
                hint="the registry is damaged or lies; do not use the image",
            )

    def _manifest(self, target: str) -> tuple[str, bytes]:
        with self._get(f"manifests/{target}", {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}) as response:
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
            return media_type, b"".join(_body(response, MAX_DOCUMENT))

    def _small_blob(self, digest: str) -> bytes:
        with self._get(f"blobs/{digest}", {"Accept-Encoding": "identity"}) as response:
            return b"".join(_body(response, MAX_DOCUMENT))

    def _get(self, path: str, headers: dict[str, str]) -> requests.Response:
        """One GET without retries; an answer of 200, 206 or 416."""
        url = f"{self._base}/{path}"
        try:
            response = oras.provider.Registry.do_request.__wrapped__(self._client, url, "GET", headers=headers, stream=True)
        except requests.exceptions.SSLError as error:
            raise RegistryError(f"{self._reference.endpoint}: {error}", hint="plain http needs --insecure") from error
        except requests.RequestException as error:
            raise _TransientError(f"cannot reach {self._reference.endpoint}: {type(error).__name__}") from error
        except ValueError as error:  # how oras says that it has no answer to a 401
            raise self._refusal(401) from error
        answer = cast("requests.Response", response)
        if answer.status_code in (200, 206, 416):
            return answer
        answer.close()
        if answer.status_code in _TRANSIENT:
            asked = answer.headers.get("Retry-After", "")
            raise _TransientError(f"{self._reference.endpoint} answers {answer.status_code}", float(asked) if asked.isdecimal() else 0.0)
        raise self._refusal(answer.status_code)

    def _refusal(self, status: int) -> RegistryError:
        if status == 404:
            return RegistryError(f"{self._reference}: the registry has no such image", hint="check the name and the tag")
        if status in (401, 403):
            return RegistryError(f"{self._reference}: the registry lets nobody read it without an account, or has no such image")
        return RegistryError(f"{self._reference}: the registry answers {status}")

    def _retry(self, work: Callable[[], _T]) -> _T:
        """Do `work`, and again after a growing pause where it failed in a way that may pass."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work()
            except _TransientError as error:
                if attempt == ATTEMPTS:
                    raise RegistryError(f"{self._reference}: {error}, {ATTEMPTS} times", hint=_NO_REGISTRY) from error
                self._pause(min(max(pause_s, error.pause_s), MAX_PAUSE_S))
                pause_s *= 2
        raise AssertionError("unreachable")

    def _path(self, digest: str) -> Path:
        return self._cache / digest.removeprefix("sha256:")

    def _cached(self, digest: str) -> bytes | None:
        """A kept document, if it still is what its name says."""
        try:
            with self._path(digest).open("rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError:
            return None
        return data if digest_of(data) == digest else None

    def _keep(self, data: bytes) -> None:
        if self._cached(digest_of(data)) is not None:
            return
        with atomic_write(self._path(digest_of(data))) as file:
            file.write(data)


def _is_whole(path: Path, descriptor: Descriptor) -> bool:
    """Whether a kept blob has its size; its digest is checked when it is read."""
    try:
        return path.stat().st_size == descriptor.size
    except FileNotFoundError:
        return False


def _body(response: requests.Response, limit: int) -> Iterator[bytes]:
    """The answer's bytes; more than `limit` of them are an error."""
    size = 0
    try:
        for data in response.iter_content(CHUNK):
            size += len(data)
            if size > limit:
                raise RegistryError(
                    f"{response.url} sends more than {limit} bytes", hint="the registry is damaged or lies; do not use the image"
                )
            yield data
    except requests.RequestException as error:
        raise _TransientError(f"the answer broke off after {size} bytes") from error
