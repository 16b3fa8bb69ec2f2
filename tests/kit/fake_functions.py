"""A server of functions that are coroutines, over HTTP on a Unix socket: what a client sees of
`mayfly serve`. The function's name says what becomes of its requests.

echo        answers with the payload
raising     has an exception of its own
full        has no room (503, and resource exhaustion in a problem)
breaking    closes the connection without an answer
together-N  answers when N requests are under way at once
held        answers when `release` is set
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web


class FakeFunctions:
    """Answers requests; `seen` are the payloads, `counters` what `GET /functions` says."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, str]] = []
        self.counters = {"memory": 1 << 30, "guests_created": 5, "guests_evicted": 1, "completed": 9, "dropped": 0}
        self.release = asyncio.Event()
        self.waiting = 0
        self.held = asyncio.Event()

    @asynccontextmanager
    async def serving(self, socket: Path) -> AsyncIterator[None]:
        """Serve on the socket."""
        app = web.Application()
        app.router.add_get("/functions", self._list)
        app.router.add_post("/functions/{name}", self._invoke)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(socket)).start()
            yield
        finally:
            self.release.set()
            await runner.cleanup()

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response({"functions": [{"name": "echo", "language": "python"}], "statistics": self.counters})

    async def _invoke(self, request: web.Request) -> web.StreamResponse:
        name, payload = request.match_info["name"], await request.read()
        self.seen.append((name, payload, request.headers.get("Content-Type", "")))
        start = "restored" if len(self.seen) == 1 else "warm"
        self.counters["guests_created"] += start == "restored"
        headers = {"X-Mayfly-Request-Id": f"{len(self.seen):032x}", "X-Mayfly-Start": start}
        headers |= {"X-Mayfly-Duration": "0.0015", "X-Mayfly-Queued": "0.25"}
        kind, _, count = name.partition("-")
        match kind:
            case "raising":
                headers["X-Mayfly-Function-Error"] = "exception"
                fields = {"error": "ValueError", "message": "no", "trace": ""}
                return web.json_response(fields, status=500, headers=headers)
            case "full":
                problem = {"code": "busy", "message": "no memory for another guest", "hint": "", "retry_after_s": 1}
                return web.json_response({"error": problem}, status=503, headers={"Retry-After": "1"})
            case "breaking":
                assert request.transport
                request.transport.abort()
            case "together":
                self.waiting += 1
                if self.waiting == int(count):
                    self.release.set()
                await self.release.wait()
            case "held":
                self.held.set()
                await self.release.wait()
        return web.Response(body=payload, content_type="application/json", headers=headers)
