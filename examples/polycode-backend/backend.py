r"""A coding site's backend on top of Mayfly: `{"language", "source"}` comes in over HTTP, the
program's output goes out as it is produced.

    python examples/polycode-backend/backend.py --socket /run/mayfly/api.sock --port 8080
    curl -N http://127.0.0.1:8080/run \
        -d '{"language": "rust", "source": "fn main() { println!(\"hello\"); }"}'

The answer is a stream of JSON lines: Mayfly's events (docs/api.md) as they come, and as the last
one `{"event": "result", "status": "ok", "exit_code": 0}`.

At `/` is a page with exercises. A solution is built once and run with each of an exercise's cases;
what a hidden case was, and what the program printed for it, is not shown.
"""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from mayfly.client import AsyncClient, CaseEvent, CaseInput
from mayfly.errors import BusyError, MayflyError

HERE = Path(__file__).parent
EXERCISES = json.loads((HERE / "exercises.json").read_text())
MAX_SOURCE = 64 * 1024
MAX_LINE = 1 << 20
"""Longest event: Mayfly cuts output into pieces of 64 KiB, which JSON escapes may make six times as
long.
"""
API: web.AppKey[aiohttp.ClientSession] = web.AppKey("api", aiohttp.ClientSession)
MAYFLY: web.AppKey[AsyncClient] = web.AppKey("mayfly", AsyncClient)


async def run(request: web.Request) -> web.StreamResponse:
    """Take a snippet, start it, and stream what comes out of it."""
    try:
        asked = await request.json()
        snippet = {"language": str(asked["language"]), "source": str(asked["source"])}
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": 'send {"language": ..., "source": ...}'}, status=400)
    started = await request.app[API].post("http://mayfly/start", params={"output": "events"}, json=snippet)
    async with started:
        answer = await started.json()
        if started.status != 201:  # 404 unknown language, 422 a bad value, 429 busy: the site's users see why
            headers = {name: value for name, value in started.headers.items() if name == "Retry-After"}
            return web.json_response(answer, status=started.status, headers=headers)
    try:
        return await stream(request, answer["output_socket"])
    except (ConnectionError, asyncio.CancelledError):  # the user went away: the machine is of no use to anyone
        await asyncio.shield(stop(request.app[API], answer["id"]))
        raise


async def stream(request: web.Request, output_socket: str) -> web.StreamResponse:
    """Pass the events on, line by line."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    done: dict[str, Any] = {"status": "error", "exit_status": None}
    reader, writer = await asyncio.open_unix_connection(output_socket, limit=MAX_LINE)
    with contextlib.closing(writer):
        async for line in reader:
            event = json.loads(line)
            if event["event"] == "done":
                done = event
            else:
                await response.write(line)
    result = {"event": "result", "status": done["status"], "exit_code": done["exit_status"]}
    await response.write(json.dumps(result).encode() + b"\n")
    await response.write_eof()
    return response


async def stop(api: aiohttp.ClientSession, run_id: str) -> None:
    """End a run."""
    async with api.delete(f"http://mayfly/runs/{run_id}"):
        pass


async def page(request: web.Request) -> web.StreamResponse:
    """The page."""
    return web.FileResponse(HERE / "index.html")


async def exercises(request: web.Request) -> web.Response:
    """What there is to solve."""
    return web.json_response({name: {"title": each["title"], "text": each["text"]} for name, each in EXERCISES.items()})


async def languages(request: web.Request) -> web.Response:
    """What it can be solved in."""
    return web.json_response(sorted({each.language for each in await request.app[MAYFLY].languages()}))


async def check(request: web.Request) -> web.StreamResponse:
    """Run a solution with each case: a line of JSON for each verdict, and one for the whole."""
    exercise = EXERCISES.get(request.match_info["name"])
    if exercise is None:
        raise web.HTTPNotFound
    try:
        asked = await request.json()
        language, source = str(asked["language"]), str(asked["source"])
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": {"message": 'send {"language": ..., "source": ...}'}}, status=400)
    cases: list[CaseInput] = [
        {"name": each["name"], "stdin": each["stdin"], "expected_stdout": each["expected_stdout"]} for each in exercise["cases"]
    ]
    answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    try:
        async with request.app[MAYFLY].start(source, language=language, cases=cases) as run:  # a user who leaves ends it
            await answer.prepare(request)
            async for event in run:
                if isinstance(event, CaseEvent):
                    hidden = exercise["cases"][event.index].get("hidden", False)
                    shown = {"name": event.name, "verdict": event.verdict} | ({} if hidden else {"stdout": event.stdout})
                    await answer.write(json.dumps(shown).encode() + b"\n")
            result = await run.state()
    except MayflyError as error:
        if answer.prepared:
            raise
        status = 429 if isinstance(error, BusyError) else 422
        return web.json_response({"error": {"message": error.message}}, status=status)
    stderr = result.stderr if result.status == "build_failed" else ""
    await answer.write(json.dumps({"status": result.status, "stderr": stderr}).encode() + b"\n")
    await answer.write_eof()
    return answer


def make_app(socket: Path) -> web.Application:
    """The backend for the Mayfly server at `socket`."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.UnixConnector(path=str(socket))
        async with aiohttp.ClientSession(connector=connector) as app[API], AsyncClient(socket, patience_s=0) as app[MAYFLY]:
            yield

    app = web.Application(client_max_size=2 * MAX_SOURCE)
    app.cleanup_ctx.append(session)
    app.router.add_post("/run", run)
    app.router.add_get("/", page)
    app.router.add_get("/exercises", exercises)
    app.router.add_post("/exercises/{name}", check)
    app.router.add_get("/languages", languages)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A coding site's backend on top of Mayfly.")
    parser.add_argument("--socket", type=Path, required=True, help="Mayfly's API socket")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    web.run_app(make_app(options.socket), host="127.0.0.1", port=options.port, handler_cancellation=True)
