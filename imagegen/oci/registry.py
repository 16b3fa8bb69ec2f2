"""Pull from a registry, and push to it (OCI distribution-spec 1.1): documents and blobs, each
checked against its digest and kept by it.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

import requests

from mayfly.errors import ConfigError, RegistryError
from mayfly.files import atomic_write, storing, sync
from mayfly.imagegen.digests import blob_path, digest_of, digest_of_file, hasher_for, is_digest, short, spell
from mayfly.imagegen.oci.accounts import find_account
from mayfly.imagegen.oci.client import CHUNK, TRANSIENT, Body, Client, TransientError, body, persistently, said, transient
from mayfly.imagegen.oci.documents import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT, Descriptor
from mayfly.imagegen.oci.reference import RegistryReference
from mayfly.imagegen.progress import Advance, Progress

_T = TypeVar("_T")
_LIES = "the registry is damaged or lies; do not use the image"
_NO_REGISTRY = "is it up, and is the network? Without one, give a layout: --image oci:FOLDER"


class RegistrySource:
    """An image in a registry. Blobs are kept in `cache`/ALGORITHM/HEX, whole and checked; `pause`
    waits between two tries.

    `offline` asks the registry nothing: what a tag stood for when it was last asked is kept in
    `cache`/tags.
    """

    def __init__(
        self,
        reference: RegistryReference,
        cache: Path,
        *,
        insecure: bool = False,
        offline: bool = False,
        progress: Progress,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        plain = insecure or reference.is_loopback
        self._reference = reference
        self._cache = cache
        self._tag = cache / "tags" / hashlib.sha256(str(reference).encode()).hexdigest()
        self._insecure = insecure
        self._offline = offline
        self._progress = progress
        self._pause = pause
        self._base = f"{'http' if plain else 'https'}://{reference.endpoint}/v2/{reference.repository}"
        account = functools.cache(lambda: find_account(reference.registry, reference.repository))
        self._client = Client(self._base, account, f"repository:{reference.repository}:pull")

    def under(self, tag: str) -> Self:
        """The same repository, with what it has under another tag."""
        reference = dataclasses.replace(self._reference, tag=tag, digest=None)
        return type(self)(
            reference, self._cache, insecure=self._insecure, offline=self._offline, progress=self._progress, pause=self._pause
        )

    def root(self) -> tuple[str, bytes]:
        """The manifest or index of the reference's tag or digest.

        Raises:
            RegistryError: no registry, no such image, or not what the digest says.
        """
        wanted = self._reference.digest or (self._remembered() if self._offline else None)
        if wanted is not None and (known := self._cached(wanted)) is not None:
            return "", known
        media_type, data = self._retry(lambda: self._manifest(self._reference.target))
        digest = digest_of(data, wanted or "sha256:")
        if wanted is not None and digest != wanted:
            raise RegistryError(f"{self._reference} answers with {digest}", hint=_LIES)
        self._keep(data, digest)
        with storing(self._tag), atomic_write(self._tag) as file:
            file.write(digest.encode())
        return media_type, data

    def _remembered(self) -> str | None:
        """The digest that the reference's tag stood for when the registry was last asked."""
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            if is_digest(digest := self._tag.read_text()):
                return digest
        return None

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or configuration, from the cache or the registry."""
        if (known := self._cached(descriptor.digest)) is not None:
            return known
        if descriptor.media_type in (*MANIFEST_TYPES, *INDEX_TYPES):
            _, data = self._retry(lambda: self._manifest(descriptor.digest))
        else:
            data = self._retry(lambda: self._small_blob(descriptor.digest))
        if digest_of(data, descriptor.digest) == descriptor.digest:  # if not, the caller refuses it
            self._keep(data, descriptor.digest)
        return data

    def blob(self, descriptor: Descriptor) -> Path:
        """The path of a blob in the cache; fetched first if need be, going on where a broken
        download ended.

        Raises:
            RegistryError: it cannot be had, or is not of its digest and size.
        """
        path = blob_path(self._cache, descriptor.digest)
        part = path.with_name(f".{path.name}.part")
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._fetch(descriptor, path, part)
            except OSError:  # the disk is full, or fails: what came so far only takes room
                with contextlib.suppress(OSError):
                    part.unlink()
                raise

    def _fetch(self, descriptor: Descriptor, path: Path, part: Path) -> Path:
        if _is_whole(path, descriptor):
            return path
        with part.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_whole(path, descriptor):  # another process fetched it while this one waited for the lock
                return path
            title = f"pulling {short(descriptor.digest)}"
            with self._progress.task(title, descriptor.size) as advance:
                self._retry(lambda: self._download(descriptor, file, advance))
            os.fsync(file.fileno())
            part.rename(path)
        sync(path.parent)
        return path

    def _download(self, descriptor: Descriptor, file: BinaryIO, advance: Advance) -> None:
        """Bring the part file to its full size, and check it."""
        hasher = hasher_for(descriptor.digest)
        file.seek(0)
        have = 0
        while data := file.read(CHUNK):
            hasher.update(data)
            have += len(data)
        left_over = have
        if have < descriptor.size:
            headers = {"Range": f"bytes={have}-"} if have else {}
            with self._get(f"blobs/{descriptor.digest}", headers) as response:
                if have and (response.status_code != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
                    file.truncate(0)  # the registry does not resume where we ask it to: start over
                    hasher, have, left_over = hasher_for(descriptor.digest), 0, 0
                    if response.status_code != 200:
                        raise TransientError(f"no range of {descriptor.digest} to be had")
                advance(have)
                for data in body(response, descriptor.size - have):
                    file.write(data)
                    hasher.update(data)
                    have += len(data)
                    advance(len(data))
        file.flush()
        if have < descriptor.size:
            raise TransientError(f"{descriptor.digest} ended after {have} of {descriptor.size} bytes")
        found = spell(hasher)
        if found != descriptor.digest or have != descriptor.size:
            file.truncate(0)
            if left_over:  # by an earlier process, or before a break: it may be that which is wrong
                raise TransientError(f"what was there of {descriptor.digest} is damaged")
            raise RegistryError(f"asked for {descriptor.digest} of {descriptor.size} bytes, got {found} of {have}", hint=_LIES)

    def _manifest(self, target: str) -> tuple[str, bytes]:
        with self._get(f"manifests/{target}", {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}) as response:
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
            return media_type, b"".join(body(response, MAX_DOCUMENT))

    def _small_blob(self, digest: str) -> bytes:
        with self._get(f"blobs/{digest}", {}) as response:
            return b"".join(body(response, MAX_DOCUMENT))

    def push(self, path: Path, digest: str) -> None:
        """Put the file `path`, a blob of this digest, into the repository, unless it is there
        already.

        Raises:
            RegistryError: the registry does not take it.
        """
        if self._retry(lambda: self._has(digest)):
            return
        with self._progress.task(f"pushing {short(digest)}", path.stat().st_size) as advance:
            self._retry(lambda: self._upload(path, digest))
            advance(path.stat().st_size)

    def push_manifest(self, data: bytes, media_type: str) -> None:
        """Put a manifest into the repository under the reference's tag (or digest). All blobs that
        it names must be there.

        Raises:
            ConfigError: the reference has the digest of another manifest.
        """
        if self._reference.digest not in (None, digest_of(data)):
            raise ConfigError(f"what is pushed has the digest {digest_of(data)}, not that of {self._reference}", hint="push it to a tag")
        headers = {"Content-Type": media_type}
        self._retry(lambda: self._request("PUT", f"{self._base}/manifests/{self._reference.target}", headers, data).close())

    def _has(self, digest: str) -> bool:
        with self._request("HEAD", f"{self._base}/blobs/{digest}", {}) as response:
            return response.status_code == 200

    def _upload(self, path: Path, digest: str) -> None:
        """Upload the whole blob by one request (distribution-spec, Pushing a blob monolithically).
        The first request also gets the token. The second goes where the registry says, without
        the token if that is another host.
        """
        url = f"{self._base}/blobs/uploads/"
        with self._request("POST", url, {"Content-Length": "0"}) as response:
            location = response.headers.get("Location")
        if not location:
            raise RegistryError(f"{self._reference}: the registry does not say where to upload to", hint=_LIES)
        location = urllib.parse.urljoin(url, location)
        separator = "&" if "?" in location else "?"
        with path.open("rb") as file:
            self._request("PUT", f"{location}{separator}digest={digest}", {"Content-Type": "application/octet-stream"}, file).close()

    def _get(self, path: str, headers: dict[str, str]) -> requests.Response:
        """One GET without retries; an answer of 200, 206 or 416."""
        return self._request("GET", f"{self._base}/{path}", headers)

    def _request(self, method: str, url: str, headers: dict[str, str], data: Body = None) -> requests.Response:
        """One request without retries; an answer that is good, or 416, or 404 to HEAD."""
        if self._offline:
            raise RegistryError(f"{self._reference} is not all in the cache", hint="build or pull it once without --offline")
        answer = self._client.request(method, url, headers, data)
        if answer.status_code in (200, 201, 202, 206, 416) or (method == "HEAD" and answer.status_code == 404):
            return answer
        if answer.status_code in TRANSIENT:
            raise transient(self._reference.endpoint, answer)
        raise self._refusal(url, answer.status_code, said(answer))

    def _refusal(self, url: str, status: int, why: str) -> RegistryError:
        if status == 404 and url.startswith(f"{self._base}/blobs/"):
            return RegistryError(
                f"{self._reference}: the registry lacks the blob {url.rpartition('/')[2]} of the image",
                # `urls` of a descriptor do not count: an image could have this host ask any server.
                hint="push the image again; a layer that is only at a URL of its own is not fetched",
            )
        if status == 404:
            return RegistryError(f"{self._reference}: the registry has no such image", hint="check the name and the tag")
        if status in (401, 403):
            return RegistryError(
                f"{self._reference}: the registry refuses{why}: there is no account, it lacks the right, or there is no such image",
                hint=f"log in as docker does, so that ~/.docker/config.json knows an account for {self._reference.registry}",
            )
        return RegistryError(f"{self._reference}: the registry answers {status}{why}")

    def _retry(self, work: Callable[[], _T]) -> _T:
        return persistently(work, str(self._reference), _NO_REGISTRY, self._progress, self._pause)

    def _cached(self, digest: str) -> bytes | None:
        """A kept document, if it still is what its name says."""
        try:
            with blob_path(self._cache, digest).open("rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError:
            return None
        return data if digest_of(data, digest) == digest else None

    def _keep(self, data: bytes, digest: str) -> None:
        if self._cached(digest) is not None:
            return
        path = blob_path(self._cache, digest)
        with storing(path), atomic_write(path) as file:
            file.write(data)


def _is_whole(path: Path, descriptor: Descriptor) -> bool:
    """Whether a kept blob is there with its size and digest. One that a disk or a user changed is
    fetched again.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != descriptor.size:
                return False
            return digest_of_file(file, descriptor.digest) == descriptor.digest
    except FileNotFoundError:
        return False
