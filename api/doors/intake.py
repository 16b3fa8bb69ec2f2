"""The way in: what every request for a run goes through, whatever dialect it came in.

A module that translates another dialect decodes its own body, and calls `submit` with the snippet,
then `attended` if the client waits for the result. `find_run` is the way back to a run.
"""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from mayfly.api.connections import Bodies
from mayfly.api.doors.access import ID, caller_of
from mayfly.api.doors.logs import JsonLog
from mayfly.api.requests import Query, check_type, parse_request
from mayfly.errors import MayflyError
from mayfly.guests.converse import StdinSource
from mayfly.host.snippet import Snippet
from mayfly.runs.run import Run
from mayfly.runs.service import Service

SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)
AUDIT: web.AppKey[JsonLog] = web.AppKey("audit", JsonLog)


async def read_snippet(request: web.Request, query: Query) -> Snippet:
    """The snippet in a request, with what its address says.

    Raises:
        RequestError: the body, or a value in it, cannot be used.
    """
    check_type(request.content_type)
    body = await request.app[BODIES].read(request)
    return parse_request(request.content_type, body, query)


def submit(request: web.Request, snippet: Snippet, *, publish: bool = False, stdin: StdinSource | None = None) -> Run:
    """Begin a run for whoever sent the request, within the limits of their key.

    Raises:
        RequestError: the snippet cannot be run as it stands, or there is no room, or a limit of the
            key's is reached.
        StoppingError, HostError: this host serves nobody now.
    """
    service, audit = request.app[SERVICE], request.app[AUDIT]
    who = {"request": request[ID], "key": caller_of(request).name}

    def over(run: Run) -> None:
        status, exit_status = run.outcome.verdict()
        audit.write(action="end", **who, run=run.id, status=status, exit_status=exit_status)

    try:
        image = service.image_for(snippet)
        run = service.start(snippet, image, stdin=stdin, publish=publish, tenant=caller_of(request).tenant, then=over)
    except MayflyError as error:
        audit.write(action="refuse", **who, language=snippet.language, code=error.code)
        raise
    source = image.manifest.source
    limits = {step: dict(asked) for step, asked in snippet.limits.items()}
    about = {"image": source.reference, "digest": source.manifest_digest, "limits": limits, "network": snippet.network}
    audit.write(action="start", **who, run=run.id, language=f"{run.language}@{run.version}", **about)
    return run


def note(request: web.Request, action: str, run_id: str) -> None:
    """Have the audit log say what else was done to a run."""
    request.app[AUDIT].write(action=action, request=request[ID], key=caller_of(request).name, run=run_id)


@contextlib.asynccontextmanager
async def attended(request: web.Request, run: Run) -> AsyncIterator[Run]:
    """A run whose client waits here; if it goes away, the run is ended."""
    try:
        yield run
    finally:
        if not run.done.is_set():
            await request.app[SERVICE].end(run, "the client went away")


def find_run(request: web.Request, run_id: str) -> Run:
    """The run with that id, if whoever sent the request may see it.

    Raises:
        UnknownRunError: there is none, it is no longer kept, or it is another key's.
    """
    tenant = caller_of(request).tenant
    return request.app[SERVICE].get(run_id, tenant.name if tenant else None)
