"""The way in: what every request for a run goes through, whatever dialect it came in.

A module that translates another dialect decodes its own body, and calls `submit` with the snippet,
then `attended` if the client waits for the result. `find_run` is the way back to a run. `begin` is
`submit` for requests in our own dialect, which may be repeated and may name a callback.
"""

import contextlib
import hashlib
import json
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec
from aiohttp import web

from mayfly.api.access import ID, REPLAYED, caller_of, is_operator, owner_of
from mayfly.api.connections import Bodies
from mayfly.api.hooks import Delivered, Hooks, Message
from mayfly.api.requests import Callback, Query, Submission, check_type, parse_submission
from mayfly.errors import MayflyError
from mayfly.host.logs import JsonLog
from mayfly.host.snippet import Snippet
from mayfly.runs.repeats import Repeat, check_key
from mayfly.runs.run import Run
from mayfly.runs.runner import Runner

SERVICE: web.AppKey[Runner] = web.AppKey("service", Runner)
BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)
AUDIT: web.AppKey[JsonLog] = web.AppKey("audit", JsonLog)
HOOKS: web.AppKey[Hooks] = web.AppKey("hooks", Hooks)
IDEMPOTENCY_KEY = "Idempotency-Key"


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


async def begin(request: web.Request, asked: Asked, *, publish: bool = False) -> Run:
    """Begin a run, or find the one that the same request began before.

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
        call = msgspec.json.encode(_Call(url=callback.url, secret=callback.secret, **_who(request)))
    return await submit(request, snippet, publish=publish, repeat=repeat, call=call)


class _Call(msgspec.Struct, kw_only=True):
    """Where a run's result goes, and who asked for that."""

    url: str
    secret: str
    request: str
    key: str


def call_back(app: web.Application, run: Run, call: bytes, told: Callable[[bool], None]) -> None:
    """Have the result delivered. Until it is, neither the request nor the run is held."""
    wanted = msgspec.json.decode(call, type=_Call)
    about = {"request": wanted.request, "key": wanted.key, "run": run.id, "host": urllib.parse.urlsplit(wanted.url).hostname}

    def heard(how: Delivered) -> None:
        app[AUDIT].write(action="callback", **about, ok=how.ok, outcome=how.outcome, attempts=how.attempts)
        told(how.is_final)

    message = Message(run.id, json.dumps(run.to_json()).encode())
    app[HOOKS].send(Callback(wanted.url, wanted.secret), message, run.owner, heard)


async def submit(
    request: web.Request,
    snippet: Snippet,
    *,
    publish: bool = False,
    then: Callable[[Run], None] | None = None,
    repeat: Repeat | None = None,
    call: bytes = b"",
) -> Run:
    """Begin a run for whoever sent the request, within the limits of their key. `then` is told when
    it is over; `call_back` makes the `call`, if there is one.

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
        run = await service.begin(snippet, image, publish=publish, tenant=tenant, then=over, repeat=repeat, call=call)
    except MayflyError as error:
        audit.write(action="refuse", **who, language=snippet.language[:80], code=error.code)
        raise
    source = image.manifest.source
    limits = {step: dict(asked) for step, asked in snippet.limits.items()}
    about = {"image": source.reference, "digest": source.manifest_digest, "limits": limits, "network": snippet.network}
    audit.write(action="start", **who, run=run.id, language=f"{run.language}@{run.version}", **about)
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
