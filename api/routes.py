"""The routes: one table of what the server answers, from which both the application and
openapi.json are made. A new route is a handler and an entry in ROUTES.
"""

import asyncio
import contextlib
import platform

from aiohttp import web
from msgspec import UNSET
from msgspec.structs import asdict

from mayfly import __version__
from mayfly.api import events, functions, moves, openapi
from mayfly.api.access import CALLER, is_operator
from mayfly.api.answers import Batched, BatchedRun, Forked, Health, Language, Languages, Runs, Saved, Started, Version, answer
from mayfly.api.connections import pieces
from mayfly.api.events import AttachQuery, EventsQuery, RunQuery
from mayfly.api.intake import BODIES, SERVICE, Asked, attended, begin, digest_of, find_run, key_of, note, read
from mayfly.api.openapi import Route
from mayfly.api.requests import (
    MAX_BATCH,
    Batch,
    Body,
    ForkBody,
    Query,
    RunsQuery,
    SaveBody,
    Signalling,
    StdinQuery,
    parse_object,
    parse_query,
    parse_submission,
)
from mayfly.errors import ConfigError, MayflyError, UnknownRunError, UnprocessableError
from mayfly.host.metrics import Measured
from mayfly.host.snippet import Terminal
from mayfly.protocol.frames import PROTOCOL_VERSION
from mayfly.runs.checkpoints import checkpoint
from mayfly.runs.forks import fork
from mayfly.runs.result import Problem, RunResult
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter

METRICS: web.AppKey[Measured] = web.AppKey("metrics", Measured)


async def start(request: web.Request) -> web.Response:
    """Accept a snippet and say where its output can be read."""
    asked = await read(request, parse_query(Query, request.query))
    run = await begin(request, asked, publish=is_operator(request))
    socket = str(request.app[SERVICE].output_socket(run)) if is_operator(request) else None
    return answer(_started(run, socket), 201, {"Location": f"/runs/{run.id}"})


async def run(request: web.Request) -> web.StreamResponse:
    """Run a snippet and answer when it is over. If the client goes away, the run is ended, unless
    it said `detach`, or will come back.
    """
    query = parse_query(RunQuery, request.query)
    asked = await read(request, query)
    if asked.submission.snippet.interactive and query.stream is UNSET:
        hint = "use POST /start, or say ?stream=jsonl: they tell the run's id before its end"
        raise UnprocessableError("nobody could write to this interactive run", hint=hint)
    awaited = query.stream is UNSET and not asked.lasting
    async with attended(request, await begin(request, asked, awaited=awaited), lasting=asked.lasting) as found:
        if query.stream is not UNSET:
            return await events.send(request, found, events.KINDS[query.stream], result=True)
        await found.done.wait()
        return answer(found.result())


async def start_batch(request: web.Request) -> web.Response:
    """Accept several snippets; each is answered as `POST /start` answers it, or with its error."""
    batch = parse_object(Batch, await request.app[BODIES].read(request))
    key = key_of(request)
    answers = []
    for number, body in enumerate(batch.runs):
        item = bytes(body)
        try:
            submission = parse_submission("application/json", item)
            asked = Asked(submission, None if key is None else f"{key}/{number}", digest_of(request, item))
            answers.append(BatchedRun(**asdict(_started(await begin(request, asked), None))))
        except MayflyError as error:
            answers.append(BatchedRun(error=Problem.of(error)))
        await asyncio.sleep(0)  # others must not wait for all of them
    return answer(Batched(runs=answers))


async def get_runs(request: web.Request) -> web.Response:
    """Give several runs as `GET /runs/{id}` gives one; null for one that is not there."""
    ids = parse_query(RunsQuery, request.query).ids.split(",")
    if len(ids) > MAX_BATCH or len(ids) != len(set(ids)):
        raise UnprocessableError(f"ids has {len(ids)} ids", hint=f"give at most {MAX_BATCH}, each once")
    found: list[RunResult | None] = []
    for run_id in ids:
        try:
            found.append((await find_run(request, run_id)).result())
        except UnknownRunError:
            found.append(None)
    return answer(Runs(runs=found))


async def get_run(request: web.Request) -> web.Response:
    """Say how far a run is, and what it has put out."""
    return answer((await _run(request)).result())


async def get_files(request: web.Request) -> web.Response:
    """Give the files of a run that asked for them, as a tar, when it is over."""
    found = await _run(request)
    await found.done.wait()
    if found.files is None:
        raise UnprocessableError("the run has no files to give back", hint='ask for them with "collect"; what was not built leaves none')
    if found.files.error is not None:
        raise UnprocessableError(found.files.error.message, hint=found.files.error.hint)
    return web.Response(body=found.files.as_tar(), content_type="application/x-tar")


async def get_events(request: web.Request) -> web.StreamResponse:
    """Give a run's events from its beginning, or behind a given one, until its end."""
    return await events.get_events(request, await _run(request), parse_query(EventsQuery, request.query))


async def attach(request: web.Request) -> web.StreamResponse:
    """Give a run's events over a WebSocket, and take standard input and signals for it."""
    run = await _run(request)
    query = parse_query(AttachQuery, request.query)
    note(request, "attach", run.id)
    return await events.attach(request, run, request.app[SERVICE], query)


async def post_stdin(request: web.Request) -> web.Response:
    """Send the body to the standard input of an interactive run, as fast as its program reads."""
    query = parse_query(StdinQuery, request.query)
    run = await _run(request)
    note(request, "stdin", run.id)
    with StdinWriter(run.stdin) as writer:
        await writer.write(b"")  # who cannot write is told so at once
        async for piece in pieces(request):
            await writer.write(piece)
        if query.eof:
            writer.end()
    await run.stdin.kept()
    return web.Response(status=204)


async def post_signal(request: web.Request) -> web.Response:
    """Send a signal to every process of a run's present step."""
    run = await _run(request)
    body = parse_object(Signalling, await request.app[BODIES].read(request))
    await request.app[SERVICE].signal(run, body.number())
    note(request, "signal", run.id)
    return web.Response(status=204)


async def post_checkpoint(request: web.Request) -> web.Response:
    """Stop a run's program of WebAssembly, and give the file from which it goes on."""
    run, service = await _run(request), request.app[SERVICE]
    if not isinstance(service, Service):
        raise UnprocessableError("a fleet gives no checkpoints yet", hint="ask the host that has the run")
    note(request, "checkpoint", run.id)
    return web.Response(body=await checkpoint(service, run), content_type="application/octet-stream")


async def post_resize(request: web.Request) -> web.Response:
    """Give the terminal of a run's program another size."""
    run = await _run(request)
    await request.app[SERVICE].resize(run, parse_object(Terminal, await request.app[BODIES].read(request)))
    return web.Response(status=204)


async def delete_run(request: web.Request) -> web.Response:
    """End a run if it is under way, and keep nothing of it."""
    run_id = request.match_info["id"]
    with contextlib.suppress(UnknownRunError):
        found = await find_run(request, run_id)
        note(request, "delete", found.id)
        await request.app[SERVICE].forget(found.id)
    return web.Response(status=204)


async def save_run(request: web.Request) -> web.Response:
    """Save the machine of a run as a snapshot; the run goes on."""
    service = request.app[SERVICE]
    body = parse_object(SaveBody, await request.app[BODIES].read(request))
    try:
        manifest = (await service.save((await _run(request)).id, body.name)).manifest
        note(request, "save", manifest.run)
    except ConfigError as error:
        raise UnprocessableError(error.message, hint=error.hint) from error
    saved = Saved(name=manifest.name, parent=manifest.parent or None, run=manifest.run, memory_bytes=manifest.memory_bytes)
    return answer(saved, 201)


async def fork_run(request: web.Request) -> web.Response:
    """Make clones of a run under way, each a run of its own from here on; the run goes on."""
    run, service = await _run(request), request.app[SERVICE]
    body = parse_object(ForkBody, await request.app[BODIES].read(request))
    if not isinstance(service, Service):
        raise UnprocessableError("a fleet makes no clones of runs yet", hint="ask the host that has the run")
    clones = await fork(service, run, body.count)
    note(request, "fork", run.id, clones=[clone.id for clone in clones])
    sockets = [str(service.output_socket(clone)) if is_operator(request) else None for clone in clones]
    return answer(Forked(clones=[_started(clone, socket) for clone, socket in zip(clones, sockets, strict=True)]), 201)


async def languages(request: web.Request) -> web.Response:
    """List the languages that can be run."""
    return answer(Languages(languages=[Language.of(image) for image in request.app[SERVICE].installed()]))


async def healthz(request: web.Request) -> web.Response:
    """Say that the server lives, and, to those whom it knows, what it has to do."""
    service = request.app[SERVICE]
    load = asdict(service.health()) if CALLER in request else {}
    return answer(Health(status="draining" if service.stopping else "ok", **load))


async def readyz(request: web.Request) -> web.Response:
    """Say whether runs are taken."""
    request.app[SERVICE].check_ready()
    return await healthz(request)


async def version(request: web.Request) -> web.Response:
    """Say what is running here."""
    factor = request.app[SERVICE].config.time_factor
    return answer(Version(version=__version__, protocol=PROTOCOL_VERSION, architecture=platform.machine(), time_factor=factor))


async def metrics(request: web.Request) -> web.Response:
    """Give counters and times in Prometheus's text format."""
    return web.Response(body=await request.app[METRICS].measure(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def describe(request: web.Request) -> web.Response:
    """Give this description of the API."""
    return web.json_response(openapi.describe(ROUTES, __version__))


_START = (201, 400, 404, 413, 415, 422, 429, 503)
ROUTES: tuple[Route, ...] = (
    Route("POST", "/start", start, Started, _START, query=Query, body=Body),
    Route("POST", "/run", run, RunResult, (200, *_START[1:]), query=RunQuery, body=Body, streams=True),
    Route("POST", "/batch", start_batch, Batched, (200, 400, 413, 422, 429), body=Batch),
    Route("GET", "/runs", get_runs, Runs, (200, 422), query=RunsQuery),
    Route("GET", "/runs/{id}", get_run, RunResult, (200, 404)),
    Route("GET", "/runs/{id}/files", get_files, None, (200, 404, 422)),
    Route("GET", "/runs/{id}/events", get_events, None, (200, 204, 404, 422, 429), query=EventsQuery, streams=True),
    Route("GET", "/runs/{id}/attach", attach, None, (101, 400, 404, 422, 429), query=AttachQuery),
    Route("POST", "/runs/{id}/stdin", post_stdin, None, (204, 400, 404, 409, 410, 422), query=StdinQuery),
    Route("POST", "/runs/{id}/signal", post_signal, None, (204, 400, 404, 409, 410, 413, 422, 429), body=Signalling),
    Route("POST", "/runs/{id}/checkpoint", post_checkpoint, None, (200, 404, 409, 410, 500)),
    Route("POST", "/runs/{id}/resize", post_resize, None, (204, 400, 404, 409, 410, 413, 422, 429), body=Terminal),
    Route("POST", "/runs/{id}/fork", fork_run, Forked, (201, 400, 404, 409, 410, 413, 422, 429, 503), body=ForkBody),
    Route("DELETE", "/runs/{id}", delete_run, None, (204,)),
    Route("POST", "/runs/{id}/snapshot", save_run, Saved, (201, 400, 404, 410, 413, 422, 503), body=SaveBody, operator=True),
    *functions.ROUTES,
    *moves.ROUTES,
    Route("GET", "/languages", languages, Languages, (200,)),
    Route("GET", "/healthz", healthz, Health, (200,), open=True),
    Route("GET", "/readyz", readyz, Health, (200, 503), open=True),
    Route("GET", "/version", version, Version, (200,), open=True),
    Route("GET", "/metrics", metrics, None, (200,)),
    Route("GET", "/openapi.json", describe, None, (200,), open=True),
)


def _started(run: Run, socket: str | None) -> Started:
    return Started(id=run.id, language=run.language, version=run.version, output=run.mode, output_socket=socket)


async def _run(request: web.Request) -> Run:
    return await find_run(request, request.match_info["id"])
