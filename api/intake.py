"""The way in: what every request for a run goes through, whatever dialect it came in.

A module that translates another dialect decodes its own body, and calls `submit` with the snippet,
then `attended` if the client waits for the result. `find_run` is the way back to a run. `begin` is
`submit` for requests in our own dialect, which may be repeated and may name a callback.
"""

import contextlib
import errno
import hashlib
import json
import socket
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from mayfly import __version__
from mayfly.api.access import ID, REPLAYED, caller_of, is_operator, owner_of
from mayfly.api.connections import Bodies
from mayfly.api.requests import Query, Submission, check_type, parse_submission
from mayfly.errors import MayflyError, UnprocessableError
from mayfly.host.addresses import Targets
from mayfly.host.logs import JsonLog
from mayfly.host.snippet import Snippet
from mayfly.runs.callbacks import Callback, Callbacks, Delivered, Message, signature
from mayfly.runs.repeats import Repeat, check_key
from mayfly.runs.run import Run
from mayfly.runs.runner import Order, Runner

IDEMPOTENCY_KEY = "Idempotency-Key"
ATTEMPT_S = 10.0  # For a callback to be answered


class Hooks(Callbacks):
    """Calls the addresses that requests name, if `targets` allows that, which is checked where a
    connection is made: a name cannot have one address when it is checked and another one when it is
    called. Redirects are not followed.
    """

    def __init__(self, targets: Targets) -> None:
        super().__init__()
        self._targets = targets

    def check(self, callback: Callback, owner: str) -> None:
        """As Callbacks.

        Raises:
            UnprocessableError: the URL may not be called, or the secret is none.
            BusyError: too many results wait for their delivery.
        """
        try:
            url = URL(callback.url)
        except ValueError as error:
            raise UnprocessableError(f"callback_url: {error}"[:200], hint="give an http or https URL") from error
        plain = all("!" <= letter <= "~" for letter in callback.url)
        if not plain or url.scheme not in ("http", "https") or not url.host or url.user is not None or url.password is not None:
            raise UnprocessableError(
                f"callback_url: {callback.url[:80]!r} cannot be called", hint="give an http or https URL without a user"
            )
        numeric = ":" in url.host or url.host.replace(".", "").isdigit()
        if numeric and not self._targets.allows(url.host, url.host):
            raise UnprocessableError(
                f"callback_url: {url.host} may not be called",
                hint="name a host of the public Internet, or have the operator add it to callback_hosts",
            )
        super().check(callback, owner)

    async def attempt(self, callback: Callback, message: Message) -> tuple[bool, str]:
        """As Callbacks."""
        headers = {"Content-Type": "application/json", "User-Agent": f"mayfly/{__version__}", **signature(callback, message)}
        url = URL(callback.url)
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_S)
        connector = aiohttp.TCPConnector(use_dns_cache=False, socket_factory=self._factory(url.host or ""))
        jar = aiohttp.DummyCookieJar()
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar, auto_decompress=False) as client,
                client.request(message.method, url, data=message.body, headers=headers, allow_redirects=False) as answer,
            ):
                return 200 <= answer.status < 300, str(answer.status)
        except TimeoutError:
            return False, f"no answer in {ATTEMPT_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return False, f"{type(error).__name__}: {error}"[:200]

    def _factory(self, host: str) -> Any:
        """Makes a socket for an address of `host`, if that may be called."""

        def make(info: tuple[Any, ...]) -> socket.socket:
            family, kind, protocol, _, address = info
            if not self._targets.allows(host, str(address[0])):
                raise PermissionError(errno.EACCES, f"{address[0]} may not be called")
            return socket.socket(family, kind, protocol)

        return make


SERVICE: web.AppKey[Runner] = web.AppKey("service", Runner)
BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)
AUDIT: web.AppKey[JsonLog] = web.AppKey("audit", JsonLog)
HOOKS: web.AppKey[Hooks] = web.AppKey("hooks", Hooks)
Messages = dict[str, Callable[[Run], Message]]
MESSAGES: web.AppKey[Messages] = web.AppKey("messages", dict)
"""What is said of a run that is over, by the contracts of others; ours has no name."""


def message_of(run: Run) -> Message:
    """What is said of a run that is over."""
    return Message(run.id, json.dumps(run.to_json()).encode())


class Asked(NamedTuple):
    """A request for a run in our own dialect. `key` is its Idempotency-Key, if it has one, and
    `digest` tells it from every other request.
    """

    submission: Submission
    key: str | None
    digest: bytes

    @property
    def lasting(self) -> bool:
        """Whether the run goes on without its client: it said so, or will ask again, or somebody is
        called.
        """
        return self.submission.snippet.detach or self.key is not None or self.submission.callback is not None


async def read(request: web.Request, query: Query) -> Asked:
    """The request for a run, with what its address says.

    Raises:
        RequestError: the body, or a value in it, cannot be used.
    """
    check_type(request.content_type)
    body = await request.app[BODIES].read(request)
    submission = parse_submission(request.content_type, body, query)
    return Asked(submission, key_of(request), digest_of(request, body))


def key_of(request: web.Request) -> str | None:
    """The request's Idempotency-Key, if it has one. Raises UnprocessableError: it is not a key."""
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is not None:
        check_key(key)
    return key


def digest_of(request: web.Request, body: bytes) -> bytes:
    """What tells a request from every other one."""
    about = f"{request.path_qs}\n{request.content_type}\n".encode(errors="surrogateescape")
    return hashlib.sha256(about + body).digest()


async def begin(request: web.Request, asked: Asked, *, publish: bool = False, awaited: bool = False) -> Run:
    """Begin a run, or find the one that the same request began before. If it is `awaited`, nothing
    is answered before its end.

    Raises:
        KeyReusedError: another request came with its Idempotency-Key.
        RequestError, StoppingError, HostError: as of submit.
    """
    snippet, callback = asked.submission
    owner = owner_of(request)
    repeat = None if asked.key is None else Repeat(owner, asked.key, asked.digest)
    if repeat is not None and (run := await request.app[SERVICE].repeated(repeat)):
        request[REPLAYED] = True
        return run
    call = b""
    if callback is not None:
        request.app[HOOKS].check(callback, owner)
        call = make_call(request, callback)
    return await submit(request, snippet, publish=publish, repeat=repeat, call=call, awaited=awaited)


class _Call(msgspec.Struct, kw_only=True):
    """Where a run's result goes, and who asked for that: by a contract of others, if it names
    one.
    """

    url: str
    secret: str
    request: str
    key: str
    contract: str = ""


def make_call(request: web.Request, callback: Callback, contract: str = "") -> bytes:
    """The call of an Order. What is sent is the contract's to say, if there is one."""
    return msgspec.json.encode(_Call(url=callback.url, secret=callback.secret, contract=contract, **_who(request)))


def call_back(app: web.Application, run: Run, call: bytes, told: Callable[[bool], None]) -> None:
    """Have the result delivered. Until it is, neither the request nor the run is held."""
    wanted = msgspec.json.decode(call, type=_Call)
    if wanted.contract not in app[MESSAGES]:
        told(False)
        return
    message = app[MESSAGES][wanted.contract](run)
    about = {"request": wanted.request, "key": wanted.key, "run": message.id, "host": urllib.parse.urlsplit(wanted.url).hostname}

    def heard(how: Delivered) -> None:
        app[AUDIT].write(action="callback", **about, ok=how.ok, outcome=how.outcome, attempts=how.attempts)
        told(how.is_final)

    app[HOOKS].send(Callback(wanted.url, wanted.secret), message, run.owner, heard)


async def submit(
    request: web.Request,
    snippet: Snippet,
    *,
    publish: bool = False,
    then: Callable[[Run], None] | None = None,
    repeat: Repeat | None = None,
    call: bytes = b"",
    awaited: bool = False,
    about: bytes = b"",
    run_id: str = "",
) -> Run:
    """Begin a run for whoever sent the request, within the limits of their key. `then` is told when
    it is over; the rest is as of Order.

    Raises:
        RequestError: the snippet cannot be run as it stands, or there is no room, or a limit of the
            key's is reached.
        StoppingError, HostError: this host serves nobody now.
    """
    service, audit = request.app[SERVICE], request.app[AUDIT]
    who = _who(request)

    def over(run: Run) -> None:
        status, exit_status = run.outcome.verdict()
        audit.write(action="end", **who, run=run.id, status=status, exit_status=exit_status)
        if then is not None:
            then(run)

    try:
        image = service.image_for(snippet)
        tenant = caller_of(request).tenant
        run = await service.begin(Order(snippet, image, publish, tenant, over, repeat, call, awaited, about, run_id))
    except MayflyError as error:
        audit.write(action="refuse", **who, language=snippet.language[:80], code=error.code)
        raise
    source = image.manifest.source
    limits = {step: dict(asked) for step, asked in snippet.limits.items()}
    shown = {"image": source.reference, "digest": source.manifest_digest, "limits": limits, "network": snippet.network}
    audit.write(action="start", **who, run=run.id, language=f"{run.language}@{run.version}", **shown)
    return run


def audit(request: web.Request, action: str, **about: object) -> None:
    """Have the audit log say what whoever sent the request has done."""
    request.app[AUDIT].write(action=action, **_who(request), **about)


def note(request: web.Request, action: str, run_id: str, **more: object) -> None:
    """Have the audit log say what else was done to a run."""
    audit(request, action, run=run_id, **more)


def _who(request: web.Request) -> dict[str, str]:
    return {"request": request[ID], "key": caller_of(request).name}


@contextlib.asynccontextmanager
async def attended(request: web.Request, run: Run, *, lasting: bool = False) -> AsyncIterator[Run]:
    """A run whose client waits here; if it goes away, the run is ended, unless it is `lasting`."""
    try:
        yield run
    finally:
        if not lasting and not run.done.is_set():
            await request.app[SERVICE].end(run, "the client went away")


async def find_run(request: web.Request, run_id: str) -> Run:
    """The run with that id, if whoever sent the request may see it.

    Raises:
        UnknownRunError: there is none, it is no longer kept, or it is another key's.
    """
    return await request.app[SERVICE].find(run_id, None if is_operator(request) else owner_of(request))
