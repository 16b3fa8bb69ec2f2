"""Pull from a registry, and push to it (OCI distribution-spec 1.1): documents and blobs, each
checked against its digest and kept by it.

oras does the talking (tokens, sessions). What it leaves to its caller is here: digests, sizes,
resuming, time limits, and retries that do not sleep for minutes (its own decorator would;
`__wrapped__` is the request without it).
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import oras.auth  # type: ignore[import-untyped]
import oras.provider  # type: ignore[import-untyped]
import requests
import requests.adapters

from mayfly.errors import RegistryError
from mayfly.files import atomic_write, sync
from mayfly.imagegen.oci.accounts import Account, find_account
from mayfly.imagegen.oci.documents import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT, Descriptor, digest_of
from mayfly.imagegen.oci.reference import RegistryReference, is_digest
from mayfly.imagegen.progress import Advance, Progress

_T = TypeVar("_T")
ATTEMPTS = 6
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 8.0
TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two pieces of an answer."""
CHUNK = 64 << 10
MAX_TOKEN = 1 << 20
CLIENT_ID = "imagegen"
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_REGISTRY = "is it up, and is the network? Without one, give a layout: --image oci:FOLDER"


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


class _Auth(oras.auth.TokenAuth):  # type: ignore[misc]  # oras has no types
    """Answers either challenge (RFC 7235): Basic with the account, Bearer with a token got by it,
    or with one that anyone gets.
    """

    def __init__(self, account: Callable[[], Account | None]) -> None:
        super().__init__()
        self._account = account
        self._answer: dict[str, str] = {}

    def get_auth_header(self) -> dict[str, str]:
        """What the last challenge was answered with."""
        return self._answer

    def authenticate_request(
        self, original: requests.Response, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        """The headers to try again with, and whether there is any point in it."""
        challenge = original.headers.get("WWW-Authenticate", "")
        account = self._account()
        if challenge.lower().startswith("basic"):
            answer = f"Basic {account.basic}" if account and account.basic else ""
        else:
            token = self._token(dict(_CHALLENGE.findall(challenge)), account)
            answer = f"Bearer {token}" if token else ""
        self._answer = {"Authorization": answer} if answer else {}
        self.token = answer or None  # as long as there is one, oras sends get_auth_header() with every request
        return {**headers, **self._answer}, bool(answer)

    def _token(self, challenge: Mapping[str, str], account: Account | None) -> str | None:
        """A token of the realm in the challenge (distribution: Token Authentication, and OAuth2
        Token Authentication), or None.
        """
        realm = challenge.get("realm", "")
        if not realm.startswith(("http://", "https://")):
            return None
        wanted = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        if account and account.identity_token:
            form = {**wanted, "grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": account.identity_token}
            response = self.session.post(realm, data=form, stream=True, allow_redirects=False)  # a redirect would take the form elsewhere
        else:
            by_account = {"Authorization": f"Basic {account.basic}"} if account else {}
            response = self.session.get(realm, params=wanted, headers=by_account, stream=True)
        with response:
            if response.status_code in _TRANSIENT:
                raise _TransientError(f"{realm} answers {response.status_code}")
            if response.status_code != 200:
                return None
            match _parsed(b"".join(_body(response, MAX_TOKEN))):
                case {"token": str(token)} | {"access_token": str(token)}:
                    return token
                case _:
                    return None


def _parsed(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


class RegistrySource:
    """An image in a registry. Blobs are kept in `cache`/sha256/HEX, whole and checked; `pause`
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
        self._cache = cache / "sha256"
        self._tag = cache / "tags" / hashlib.sha256(str(reference).encode()).hexdigest()
        self._offline = offline
        self._progress = progress
        self._pause = pause
        self._base = f"{'http' if plain else 'https'}://{reference.endpoint}/v2/{reference.repository}"
        self._client = oras.provider.Registry(hostname=reference.endpoint, insecure=plain)
        auth = _Auth(functools.cache(lambda: find_account(reference.registry)))
        auth.session, auth.prefix, auth._tls_verify = self._client.session, self._client.prefix, True
        self._client.auth = auth
        for prefix in ("http://", "https://"):
            self._client.session.mount(prefix, _Adapter())

    def root(self) -> tuple[str, bytes]:
        """The manifest or index of the reference's tag or digest.

        Raises:
            RegistryError: no registry, no such image, or not what the digest says.
        """
        wanted = self._reference.digest or (self._remembered() if self._offline else None)
        if wanted is not None and (known := self._cached(wanted)) is not None:
            return "", known
        media_type, data = self._retry(lambda: self._manifest(self._reference.target))
        if wanted is not None and digest_of(data) != wanted:
            raise RegistryError(
                f"{self._reference} answers with {digest_of(data)}", hint="the registry is damaged or lies; do not use the image"
            )
        self._keep(data)
        with atomic_write(self._tag) as file:
            file.write(digest_of(data).encode())
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
        if digest_of(data) == descriptor.digest:  # if not, the caller refuses it
            self._keep(data)
        return data

    def blob(self, descriptor: Descriptor) -> Path:
        """The path of a blob in the cache; fetched first if need be, going on where a broken
        download ended.

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
        sync(self._cache)
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

    def push(self, path: Path, digest: str) -> None:
        """Put the file `path`, a blob of this digest, into the repository, unless it is there
        already.

        Raises:
            RegistryError: the registry does not take it.
        """
        if self._retry(lambda: self._has(digest)):
            return
        with self._progress.task(f"pushing {digest[7:19]}", path.stat().st_size) as advance:
            self._retry(lambda: self._upload(path, digest))
            advance(path.stat().st_size)

    def push_manifest(self, data: bytes, media_type: str) -> None:
        """Put a manifest into the repository under the reference's tag (or digest). All blobs that
        it names must be there.
        """
        headers = {"Content-Type": media_type}
        self._retry(lambda: self._request("PUT", f"{self._base}/manifests/{self._reference.target}", headers, data).close())

    def _has(self, digest: str) -> bool:
        with self._request("HEAD", f"{self._base}/blobs/{digest}", {}) as response:
            return response.status_code == 200

    def _upload(self, path: Path, digest: str) -> None:
        """Upload in one go (distribution-spec, Pushing a blob monolithically): the first request
        also sees to the token.
        """
        with self._request("POST", f"{self._base}/blobs/uploads/", {"Content-Length": "0"}) as response:
            location = urllib.parse.urljoin(f"{self._base}/blobs/uploads/", response.headers.get("Location", ""))
        separator = "&" if "?" in location else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
        with path.open("rb") as body:
            self._request("PUT", f"{location}{separator}digest={digest}", headers, body).close()

    def _get(self, path: str, headers: dict[str, str]) -> requests.Response:
        """One GET without retries; an answer of 200, 206 or 416."""
        return self._request("GET", f"{self._base}/{path}", headers)

    def _request(self, method: str, url: str, headers: dict[str, str], data: bytes | BinaryIO | None = None) -> requests.Response:
        """One request without retries; an answer that is good, or 416, or 404 to HEAD."""
        if self._offline:
            raise RegistryError(f"{self._reference} is not all in the cache", hint="build or pull it once without --offline")
        try:
            response = oras.provider.Registry.do_request.__wrapped__(self._client, url, method, data=data, headers=headers, stream=True)
        except requests.exceptions.SSLError as error:
            raise RegistryError(f"{self._reference.endpoint}: {error}", hint="plain http needs --insecure") from error
        except requests.RequestException as error:
            raise _TransientError(f"cannot reach {self._reference.endpoint}: {type(error).__name__}") from error
        except ValueError as error:  # how oras says that it has no answer to a 401
            raise self._refusal(401) from error
        answer = cast("requests.Response", response)
        if answer.status_code in (200, 201, 202, 206, 416) or (method == "HEAD" and answer.status_code == 404):
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
            return RegistryError(
                f"{self._reference}: the registry refuses: no account, a wrong one, one that may not, or there is no such image",
                hint=f"log in as docker does, so that ~/.docker/config.json knows an account for {self._reference.registry}",
            )
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
