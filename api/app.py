"""The HTTP server on a Unix socket: the application around the routes, its errors, its beginning
and its end.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from mayfly.api.connections import Bodies, Connection, Connections, Handler
from mayfly.api.doors.intake import BODIES, SERVICE
from mayfly.api.metrics import Metrics
from mayfly.api.problems import status_of
from mayfly.api.requests import MAX_BODY
from mayfly.api.routes import METRICS, ROUTES
from mayfly.api.sockets import claim
from mayfly.errors import BusyError, MayflyError, to_wire
from mayfly.host.checks import time_factor
from mayfly.host.config import Config
from mayfly.runs.service import Service
from mayfly.vmm.process.zygote import Zygote

log = logging.getLogger(__name__)
HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
"""Codes of the errors that aiohttp itself finds."""
SHUTDOWN_S = 5.0


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into an answer of the one form that docs/api.md describes."""
    headers = {}
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        status = error.status
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
        hint = f"at most {MAX_BODY} bytes are taken" if status == 413 else "GET /openapi.json lists the routes"
        problem = {
            "code": HTTP_CODES.get(status, "bad_request"),
            "message": f"{request.method} {request.path[:200]}: {error.reason}",
            "hint": hint,
        }
    except BusyError as error:
        status, problem = status_of(error), to_wire(error)
        headers = {"Retry-After": str(error.retry_after_s)}
    except MayflyError as error:
        status, problem = status_of(error), to_wire(error)
    except Exception:
        log.exception("%s %s", request.method, request.path)
        status, problem = 500, {"code": "internal", "message": "a fault of ours", "hint": "see the server's log, and report it"}
    answer = web.json_response({"error": problem}, status=status, headers=headers)
    if request.content.exception() is not None:
        answer.force_close()  # nobody knows where on the connection the next request would begin
    return answer


def make_app(service: Service, metrics: Metrics, connections: Connections) -> web.Application:
    """The application that serves `service`."""
    app = web.Application(middlewares=[connections.middleware, answer_errors])
    app[SERVICE] = service
    app[METRICS] = metrics
    app[BODIES] = Bodies(MAX_BODY)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
        if route.method == "GET":  # as RFC 9110, 9.1 asks for
            app.router.add_head(route.path, route.handler)
    return app


async def serve_http(service: Service, metrics: Metrics, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve on `listener` until `stop`; then no new request is taken, every run is ended, and those
    who wait are answered.
    """
    connections = Connections()
    app = make_app(service, metrics, connections)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    http = runner.server
    assert http is not None  # noqa: S101 (setup makes it)
    watch = asyncio.create_task(connections.watch())
    try:
        server = await asyncio.get_running_loop().create_unix_server(lambda: Connection(http(), connections), sock=listener)
        await stop.wait()
        server.close()
        await service.close()
    finally:
        watch.cancel()
        await runner.cleanup()


async def serve(config: Config, zygote: Callable[[], Zygote]) -> None:
    """Serve until SIGTERM or SIGINT. No socket, machine or zygote is left when it returns.

    Raises:
        MayflyError: it cannot begin.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics()
    with claim(config.socket) as (listener, folder):
        async with Service(config, zygote, sockets=folder, observer=metrics) as service:
            service.warm_up(config.languages)
            names = ", ".join(f"{image.manifest.language}@{image.manifest.version}" for image in service.installed())
            budget = service.health().memory_budget >> 20
            log.info("listening at %s; languages: %s; %d MiB for machines", config.socket, names or "none", budget)
            if config.time_factor != 1:
                log.info("time limits are multiplied by %g", config.time_factor)
            await serve_http(service, metrics, listener, stop)
            log.info("stopped")


def main(config: Config, zygote: Callable[[], Zygote] | None = None) -> None:
    """`mayfly serve`: check the host, then serve."""
    logging.basicConfig(level=logging.INFO, format="mayfly: %(message)s")
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it logs what clients do wrong; faults of ours are logged here
    config = config.scaled(time_factor(config))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # each run has an output socket, each reader one more
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(serve(config, zygote or Zygote.start))
