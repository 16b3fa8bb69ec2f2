"""The routes: one table of what the server answers, from which both the application and
openapi.json are made.
"""

import asyncio
import contextlib
import json
import platform
from typing import Any

from aiohttp import web
from msgspec import UNSET
from msgspec.structs import asdict

from mayfly import __version__
from mayfly.api import events, openapi
from mayfly.api.doors.access import CALLER, is_operator
from mayfly.api.doors.intake import BODIES, IDEMPOTENCY_KEY, SERVICE, Asked, attended, begin, digest_of, find_run, note, read
from mayfly.api.events import EventsQuery, RunQuery
from mayfly.api.metrics import Metrics
from mayfly.api.openapi import Route
from mayfly.api.requests import MAX_BATCH, Batch, Query, RunsQuery, parse_object, parse_query, parse_submission
from mayfly.errors import ConfigError, MayflyError, RequestError, UnknownRunError, UnprocessableError, to_wire
from mayfly.protocol.frames import PROTOCOL_VERSION
from mayfly.runs.run import Run

METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


async def start(request: web.Request) -> web.Response:
    """Accept a snippet and say where its output can be read."""
    asked = await read(request, parse_query(Query, request.query))
    run = begin(request, asked, publish=is_operator(request))
    socket = str(request.app[SERVICE].output_socket(run)) if is_operator(request) else None
    return web.json_response(_started(run, socket), status=201, headers={"Location": f"/runs/{run.id}"})


async def run(request: web.Request) -> web.StreamResponse:
    """Run a snippet and answer when it is over. If the client goes away, the run is ended."""
    query = parse_query(RunQuery, request.query)
    asked = await read(request, query)
    async with attended(request, begin(request, asked), lasting=asked.lasting) as found:
        if query.stream is not UNSET:
            return await events.send(request, found, events.KINDS[query.stream], result=True)
        await found.done.wait()
        return web.json_response(found.to_json())


async def start_batch(request: web.Request) -> web.Response:
    """Accept several snippets; each is answered as `POST /start` answers it, or with its error."""
    batch = parse_object(Batch, await request.app[BODIES].read(request))
    key = request.headers.get(IDEMPOTENCY_KEY)
    answers: list[dict[str, Any]] = []
    for number, body in enumerate(batch.runs):
        item = bytes(body)
        try:
            submission = parse_submission("application/json", item)
            asked = Asked(submission, None if key is None else f"{key}/{number}", digest_of(request, item))
            answers.append(_started(begin(request, asked), None))
        except MayflyError as error:
            answers.append({"error": to_wire(error)})
        await asyncio.sleep(0)  # others must not wait for all of them
    return web.json_response({"runs": answers})


async def get_runs(request: web.Request) -> web.Response:
    """Give several runs as `GET /runs/{id}` gives one; null for one that is not there."""
    ids = parse_query(RunsQuery, request.query).ids.split(",")
    if len(ids) > MAX_BATCH or len(ids) != len(set(ids)):
        raise UnprocessableError(f"ids has {len(ids)} ids", hint=f"give at most {MAX_BATCH}, each once")
    found: list[dict[str, Any] | None] = []
    for run_id in ids:
        try:
            found.append(find_run(request, run_id).to_json())
        except UnknownRunError:
            found.append(None)
    return web.json_response({"runs": found})


async def get_run(request: web.Request) -> web.Response:
    """Say how far a run is, and what it has put out."""
    return web.json_response(_run(request).to_json())


async def get_events(request: web.Request) -> web.StreamResponse:
    """Give a run's events from its beginning, or behind a given one, until its end."""
    return await events.get_events(request, _run(request), parse_query(EventsQuery, request.query))


async def delete_run(request: web.Request) -> web.Response:
    """End a run if it is under way, and keep nothing of it."""
    run_id = request.match_info["id"]
    with contextlib.suppress(UnknownRunError):
        found = find_run(request, run_id)
        note(request, "delete", found.id)
        await request.app[SERVICE].forget(found.id)
    return web.Response(status=204)


async def save_run(request: web.Request) -> web.Response:
    """Save the machine of a run as a snapshot; the run goes on."""
    service = request.app[SERVICE]
    try:
        body = json.loads(await request.app[BODIES].read(request))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(body, dict) or set(body) != {"name"} or not isinstance(body["name"], str):
        raise UnprocessableError("the body is not an object with a name", hint='send {"name": "..."}')
    try:
        manifest = (await service.save(_run(request).id, body["name"])).manifest
        note(request, "save", manifest.run)
    except ConfigError as error:
        raise UnprocessableError(error.message, hint=error.hint) from error
    answer = {"name": manifest.name, "parent": manifest.parent or None, "run": manifest.run, "memory_bytes": manifest.memory_bytes}
    return web.json_response(answer, status=201)


async def languages(request: web.Request) -> web.Response:
    """List the languages that can be run."""
    images = request.app[SERVICE].installed()
    return web.json_response(
        {
            "languages": [
                {
                    "language": image.manifest.language,
                    "version": image.manifest.version,
                    "compiler": image.manifest.compiler,
                    "default": image.is_default,
                    "architecture": image.manifest.arch,
                    "extensions": image.manifest.extensions,
                    "source_file": image.manifest.source_file,
                    "steps": [step.name for step in image.manifest.steps],
                    "memory": image.manifest.memory,
                    "image": image.manifest.source.reference,
                }
                for image in images
            ]
        }
    )


async def healthz(request: web.Request) -> web.Response:
    """Say that the server lives, and, to those whom it knows, what it has to do."""
    service = request.app[SERVICE]
    load = asdict(service.health()) if CALLER in request else {}
    return web.json_response({"status": "draining" if service.stopping else "ok", **load})


async def readyz(request: web.Request) -> web.Response:
    """Say whether runs are taken."""
    request.app[SERVICE].check_ready()
    return await healthz(request)


async def version(request: web.Request) -> web.Response:
    """Say what is running here."""
    factor = request.app[SERVICE].config.time_factor
    return web.json_response(
        {"version": __version__, "protocol": PROTOCOL_VERSION, "architecture": platform.machine(), "time_factor": factor}
    )


async def metrics(request: web.Request) -> web.Response:
    """Give counters and times in Prometheus's text format."""
    return web.Response(body=request.app[METRICS].text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def describe(request: web.Request) -> web.Response:
    """Give this description of the API."""
    return web.json_response(openapi.describe(ROUTES, __version__))


_START = (201, 400, 404, 413, 415, 422, 429, 503)
ROUTES: tuple[Route, ...] = (
    Route("POST", "/start", start, "Started", _START, query=Query, snippet=True),
    Route("POST", "/run", run, "Run", (200, *_START[1:]), query=RunQuery, snippet=True, streams=True),
    Route("POST", "/batch", start_batch, "Batched", (200, 400, 413, 422, 429), body="Batch"),
    Route("GET", "/runs", get_runs, "Runs", (200, 422), query=RunsQuery),
    Route("GET", "/runs/{id}", get_run, "Run", (200, 404)),
    Route("GET", "/runs/{id}/events", get_events, "", (200, 204, 404, 422, 429), query=EventsQuery, streams=True),
    Route("DELETE", "/runs/{id}", delete_run, "", (204,)),
    Route("POST", "/runs/{id}/snapshot", save_run, "Saved", (201, 400, 404, 410, 422, 503), body="Save", operator=True),
    Route("GET", "/languages", languages, "Languages", (200,)),
    Route("GET", "/healthz", healthz, "Health", (200,), open=True),
    Route("GET", "/readyz", readyz, "Health", (200, 503), open=True),
    Route("GET", "/version", version, "Version", (200,), open=True),
    Route("GET", "/metrics", metrics, "", (200,)),
    Route("GET", "/openapi.json", describe, "", (200,), open=True),
)


def _started(run: Run, socket: str | None) -> dict[str, Any]:
    return {"id": run.id, "language": run.language, "version": run.version, "output": run.mode, "output_socket": socket}


def _run(request: web.Request) -> Run:
    return find_run(request, request.match_info["id"])
