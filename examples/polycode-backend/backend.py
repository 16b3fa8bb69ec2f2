r"""A coding site's backend on top of Mayfly: `{"language", "source"}` comes in over HTTP, the
program's output goes out as it is produced.

    python examples/polycode-backend/backend.py --socket /run/mayfly/api.sock --port 8080
    curl -N http://127.0.0.1:8080/run \
        -d '{"language": "rust", "source": "fn main() { println!(\"hello\"); }"}'

The answer is a stream of JSON lines: Mayfly's events (docs/api.md) as they come, and as the last
one `{"event": "result", "status": "ok", "exit_code": 0}`.
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

MAX_SOURCE = 64 * 1024
MAX_LINE = 1 << 20
"""Longest event: Mayfly cuts output into pieces of 64 KiB, which JSON escapes may make six times as
long.
"""
API: web.AppKey[aiohttp.ClientSession] = web.AppKey("api", aiohttp.ClientSession)


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


def make_app(socket: Path) -> web.Application:
    """The backend for the Mayfly server at `socket`."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as app[API]:
            yield

    app = web.Application(client_max_size=2 * MAX_SOURCE)
    app.cleanup_ctx.append(session)
    app.router.add_post("/run", run)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A coding site's backend on top of Mayfly.")
    parser.add_argument("--socket", type=Path, required=True, help="Mayfly's API socket")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    web.run_app(make_app(options.socket), host="127.0.0.1", port=options.port, handler_cancellation=True)
