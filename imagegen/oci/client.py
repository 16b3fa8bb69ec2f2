"""Requests to one registry: HTTP, redirects and credentials.

What the registry was given goes to its own scheme, host and port alone: not along a redirect, not
to an upload's Location elsewhere, and a challenge of another host is not answered. Redirects are
followed here, not by the HTTP library, so that every address passes the same check.

Sources: OCI distribution-spec 1.1; RFC 9110, 11 (challenges); Docker Registry, Token Authentication
and OAuth2 Token Authentication.
"""

import email.utils
import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple, TypeVar

import requests
import urllib3.exceptions

from mayfly.errors import RegistryError
from mayfly.imagegen.oci.accounts import Account
from mayfly.imagegen.oci.reference import is_loopback
from mayfly.imagegen.progress import Progress

TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two pieces of an answer."""
ATTEMPTS = 6
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 8.0
MAX_ASKED_S = 60.0
"""The longest pause that a registry is granted, as by skopeo."""
MAX_REDIRECTS = 10
MAX_TOKEN = 1 << 20
MAX_REFUSAL = 64 << 10
"""Bytes of an answer that says why a registry refuses."""
CHUNK = 64 << 10
CLIENT_ID = "imagegen"
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
_PORTS = {"http": 80, "https": 443}
_NO_PROXY: dict[str, str | None] = {"http": None, "https": None, "all": None}
_LIES = "the registry is damaged or lies; do not use the image"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (RFC 9110, 5.6.2)
_CHALLENGE_PART = re.compile(
    rf'\s*,?\s*(?:({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))|({_TOKEN})(?:\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$)))?)'
)
"""A parameter (name, quoted value, plain value), or a scheme and the token68 that may follow."""

Body = bytes | BinaryIO | None
_T = TypeVar("_T")


class TransientError(Exception):
    """Worth another try; `pause_s` is how long the registry asks to wait, `hint` what to do when
    every try fails so.
    """

    def __init__(self, message: str, pause_s: float = 0.0, hint: str = "") -> None:
        super().__init__(message)
        self.pause_s = pause_s
        self.hint = hint


class Origin(NamedTuple):
    """Where a request goes, as far as credentials are concerned."""

    scheme: str
    host: str
    port: int


class Challenge(NamedTuple):
    """One challenge of WWW-Authenticate; scheme and names of parameters in small letters."""

    scheme: str
    parameters: dict[str, str]


def origin_of(url: str) -> Origin:
    """The origin of an absolute URL of http or https.

    Raises:
        RegistryError: it is another kind of URL.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("not an address of http or https")
        return Origin(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])
    except ValueError as error:
        raise RegistryError(f"the registry leads to {url[:200]!r}: {error}", hint=_LIES) from error


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header, several of which may have been joined."""
    found: list[Challenge] = []
    at = 0
    while match := _CHALLENGE_PART.match(header, at):
        at = match.end()
        name, quoted, plain, scheme = match.groups()
        if scheme:
            found.append(Challenge(scheme.lower(), {}))
        elif found:
            found[-1].parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
    return found


class Client:
    """Makes requests to the registry whose API is at `base`, with the account that `account` finds
    when the registry asks for one. May be used by several threads.
    """

    def __init__(self, base: str, account: Callable[[], Account | None], scope: str) -> None:
        self._home = origin_of(base)
        self._account = account
        self._scope = scope
        self._authorization = ""
        self._session = requests.Session()
        self._session.auth = _unchanged  # else ~/.netrc would replace what is sent: skopeo and containerd do not read it

    def request(self, method: str, url: str, headers: Mapping[str, str], data: Body = None) -> requests.Response:
        """One request without retries, and once more with credentials where the registry asks for
        them. The caller reads and closes the answer, whatever its status.

        Raises:
            TransientError: it may succeed later.
            RegistryError: the registry cannot be talked to, or leads where nothing may be sent.
        """
        response, asker = self._follow(method, url, headers, data, self._home, self._authorization)
        if response.status_code not in (401, 403) or asker != self._home:
            return response
        answer = self._answer(parse_challenges(response.headers.get("WWW-Authenticate", "")))
        if not answer:
            return response
        response.close()
        self._authorization = answer
        return self._follow(method, url, headers, data, self._home, answer)[0]

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], data: Body, home: Origin, authorization: str
    ) -> tuple[requests.Response, Origin]:
        """The answer at the end of all redirects, and where it came from. `authorization` goes to
        `home` only.
        """
        for _ in range(MAX_REDIRECTS + 1):
            origin = origin_of(url)
            own = {"Authorization": authorization} if authorization and origin == home else {}
            if data is not None and not isinstance(data, bytes):
                data.seek(0)
            response = self._send(method, url, {"Accept-Encoding": "identity", **headers, **own}, data, origin)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or location is None:
                return response, origin
            response.close()
            if method not in ("GET", "HEAD") and response.status_code not in _SAME_METHOD:
                raise RegistryError(f"{origin.host} answers {method} with the redirect {response.status_code}", hint=_LIES)
            url = urllib.parse.urljoin(url, location)
        raise RegistryError(f"{self._home.host} redirects more than {MAX_REDIRECTS} times", hint=_LIES)

    def _send(self, method: str, url: str, headers: Mapping[str, str], data: Body, origin: Origin) -> requests.Response:
        if self._home.scheme == "https" and origin.scheme == "http":
            raise RegistryError(f"{self._home.host} leads from https to http at {origin.host}", hint="do not use it, or give --insecure")
        proxies = _NO_PROXY if is_loopback(origin.host) else None  # as Go's net/http has it
        try:
            return self._session.request(
                method,
                url,
                headers=headers,
                data=data,
                stream=True,
                allow_redirects=False,
                timeout=TIMEOUT_S,
                proxies=proxies,  # type: ignore[arg-type]
            )
        except requests.exceptions.SSLError as error:
            raise RegistryError(f"{origin.host}: {error}", hint="plain http needs --insecure") from error
        except requests.exceptions.ProxyError as error:
            raise TransientError(
                f"cannot reach {origin.host}: the proxy of HTTP_PROXY or HTTPS_PROXY does not answer or refuses"
            ) from error
        except (ValueError, urllib3.exceptions.HTTPError) as error:  # of requests too: a URL, a header or a proxy that makes no sense
            raise RegistryError(
                f"{origin.host}: {error}", hint="see HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, and what the registry answers"
            ) from error
        except requests.RequestException as error:
            raise TransientError(f"cannot reach {origin.host}: {type(error).__name__}") from error

    def _answer(self, challenges: list[Challenge]) -> str:
        """The Authorization that answers one of the challenges, or "": a token rather than the
        account itself, as containerd chooses.
        """
        account = self._account()
        for challenge in challenges:
            if challenge.scheme == "bearer" and (token := self._token(challenge.parameters, account)):
                return f"Bearer {token}"
        if account and account.basic and any(challenge.scheme == "basic" for challenge in challenges):
            return f"Basic {account.basic}"
        return ""

    def _token(self, challenge: Mapping[str, str], account: Account | None) -> str:
        """A token of the realm that the registry names, or ""."""
        realm = challenge.get("realm", "")
        if not realm.startswith(("http://", "https://")):
            return ""
        wanted = {"scope": self._scope} | {key: challenge[key] for key in ("service", "scope") if key in challenge}
        if account and account.identity_token:
            form = {**wanted, "grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": account.identity_token}
            # One request: a redirect would take the form elsewhere.
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._send("POST", realm, kind, urllib.parse.urlencode(form).encode(), origin_of(realm))
        else:
            basic = f"Basic {account.basic}" if account and account.basic else ""
            # A parameter for each scope (Token Authentication, Query Parameters).
            query = urllib.parse.urlencode({**wanted, "scope": wanted["scope"].split()}, doseq=True)
            url = f"{realm}{'&' if '?' in realm else '?'}{query}"
            response = self._follow("GET", url, {}, None, origin_of(realm), basic)[0]
        with response:
            if response.status_code in TRANSIENT:
                raise transient(origin_of(realm).host, response)
            if response.status_code != 200:
                return ""
            return _token_in(b"".join(body(response, MAX_TOKEN)))


def persistently(work: Callable[[], _T], what: str, hint: str, progress: Progress, pause: Callable[[float], None]) -> _T:
    """Do `work`, and again after a growing pause where it failed in a way that may pass.

    Raises:
        RegistryError: it failed each time; it says `what` was wanted, and `hint`.
    """
    pause_s = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except TransientError as error:
            advice = error.hint or hint
            if error.pause_s > MAX_ASKED_S:
                raise RegistryError(f"{what}: {error}; it asks to wait {error.pause_s:.0f} s", hint=advice) from error
            if attempt == ATTEMPTS:
                raise RegistryError(f"{what}: {error}, {ATTEMPTS} times", hint=advice) from error
            if error.pause_s > MAX_PAUSE_S:
                progress.say(f"{error}; trying again in {error.pause_s:.0f} s, as it asks")
            pause(max(pause_s, error.pause_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
    raise AssertionError("unreachable")


def transient(host: str, response: requests.Response) -> TransientError:
    """The error for an answer of `host` whose status is one of TRANSIENT."""
    hint = "it limits how much one may ask; wait, or log in as docker does" if response.status_code == 429 else ""
    return TransientError(f"{host} answers {response.status_code}{said(response)}", pause_asked(response), hint)


def pause_asked(response: requests.Response) -> float:
    """How many seconds the answer asks to wait (RFC 9110, 10.2.3): 0 if none that make sense."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def said(response: requests.Response) -> str:
    """What a registry says of its refusal, `, and says: CODE: message` (distribution-spec, Error
    Codes), or "". Closes the answer.
    """
    try:
        with response:
            answer = json.loads(b"".join(body(response, MAX_REFUSAL)))
        error = answer["errors"][0]
        text = ": ".join(error[key] for key in ("code", "message") if error.get(key))
    except (TransientError, RegistryError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in text[:300]).split())
    return f", and says: {shown}" if shown else ""


def body(response: requests.Response, limit: int) -> Iterator[bytes]:
    """The answer's bytes as they came; more than `limit` of them are an error."""
    size = 0
    try:
        while data := response.raw.read(CHUNK, decode_content=False):
            size += len(data)
            if size > limit:
                raise RegistryError(f"{origin_of(response.url).host} sends more than {limit} bytes", hint=_LIES)
            yield data
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TransientError(f"the answer broke off after {size} bytes") from error


def _token_in(data: bytes) -> str:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    values = [answer.get(key) for key in ("token", "access_token")] if isinstance(answer, dict) else []
    return next((value for value in values if isinstance(value, str) and value.isascii() and value.isprintable() and value), "")


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
