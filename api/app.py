"""The HTTP server, on a Unix socket and on TCP addresses: the application around the routes, its
errors, its beginning and its end.
"""

import asyncio
import contextlib
import functools
import logging
import math
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from mayfly.api import playground
from mayfly.api.access import ID, Access
from mayfly.api.answers import status_of
from mayfly.api.compat.dialect import Dialect
from mayfly.api.compat.dialects import Narrow, addresses_of, make_dialects
from mayfly.api.connections import Bodies, Connection, Connections, Handler
from mayfly.api.functions import FUNCTIONS, add_headers
from mayfly.api.intake import AUDIT, BODIES, HOOKS, MESSAGES, SERVICE, Hooks, Messages, call_back, message_of
from mayfly.api.moves import MOVES
from mayfly.api.requests import MAX_BODY
from mayfly.api.routes import METRICS, ROUTES
from mayfly.errors import BusyError, ConfigError, MayflyError, StoppingError, UnauthorizedError, to_wire
from mayfly.functions.runner import FunctionRunner
from mayfly.functions.service import Functions
from mayfly.guests.cgroups import Groups
from mayfly.guests.zygote import Zygote
from mayfly.host import activation
from mayfly.host.addresses import Targets
from mayfly.host.checks import sandbox, time_factor
from mayfly.host.config import Config
from mayfly.host.handshakes import Handshakes
from mayfly.host.keys import Keyring, default_path
from mayfly.host.listen import Door, load_tls, open_doors
from mayfly.host.logs import open_log
from mayfly.host.metrics import Measured, Metrics
from mayfly.host.sockets import claim
from mayfly.runs import left
from mayfly.runs.moves.desk import Moves
from mayfly.runs.moves.link import Machines
from mayfly.runs.moves.machines import HostMachines
from mayfly.runs.runner import Runner
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.vmm.kvm.prctl import prctl

log = logging.getLogger(__name__)
HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
"""Codes of the errors that aiohttp itself finds."""
PATHS = tuple(route.path for route in ROUTES)
SHUTDOWN_S = 5.0
SERVER: Mapping[str, Any] = {"handler_cancellation": True, "access_log": None}
RETRY_S = 5
"""When a client may look whether a server that stops is back."""
Gateway = Callable[[Config, Functions], contextlib.AbstractAsyncContextManager[str]]
"""Serves functions while its block is under way; gives its address, if it has one, for the log."""
Join = Callable[[Service, Functions, Metrics], contextlib.AbstractAsyncContextManager[str]]
"""Has a service with its functions work for others too while its block is under way; gives whom,
for the log.
"""


Behind = tuple[Runner, FunctionRunner, Measured, Sequence[str]]
"""What the application stands before, and where it is served or serves besides."""
Backend = Callable[[Config, Path], contextlib.AbstractAsyncContextManager[Behind]]
"""Makes it, with a folder for output sockets, while its block is under way."""
DIALECTS: web.AppKey[Sequence[Dialect]] = web.AppKey("dialects", tuple)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into an answer of the one form that docs/api.md describes, or of that of the
    contract of others that the request is of.
    """
    headers: Mapping[str, str] = {}
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
    except MayflyError as error:
        status, problem, headers = status_of(error), to_wire(error), headers_of(error)
    except Exception:
        log.exception("%s %s", request.method, request.path)
        status, problem = 500, {"code": "internal", "message": "a fault of ours", "hint": "see the server's log, and report it"}
    own = {"error": problem, "request_id": request[ID]}
    dialect = dialect_of(request)
    answer = dialect.refuse(status, problem) if dialect else web.json_response(own, status=status)
    answer.headers.update(headers)
    if request.content.exception() is not None:
        answer.force_close()  # nobody knows where on the connection the next request would begin
    return answer


def dialect_of(request: web.Request) -> Dialect | None:
    """The contract of others that a request is of."""
    return next((dialect for dialect in request.app[DIALECTS] if dialect.has(request.path)), None)


async def finish(request: web.Request, answer: web.StreamResponse) -> None:
    """Add what the contract that a request is of has in every answer."""
    if dialect := dialect_of(request):
        dialect.finish(answer)


def headers_of(error: MayflyError) -> Mapping[str, str]:
    """The headers of an answer that carries the error."""
    match error:
        case BusyError():
            return {"Retry-After": str(error.retry_after_s)}
        case StoppingError():
            return {"Retry-After": str(RETRY_S)}
        case UnauthorizedError():
            return {"WWW-Authenticate": 'Bearer realm="mayfly"'}
    return {}


def make_app(
    service: Runner,
    functions: FunctionRunner,
    metrics: Measured,
    connections: Connections,
    keyring: Keyring | None = None,
    machines: Machines | None = None,
) -> web.Application:
    """The application that serves `service` and `functions`, with the logs that the configuration
    names; the keys are in `keyring`, or those of this user. Runs of a host's own service move as
    `machines` has it.

    Raises:
        ConfigError: the configuration asks for a contract of others that is not there.
    """
    config = service.config
    log, audit = open_log(config.access_log), open_log(config.audit_log)
    keyring = Keyring(default_path()) if keyring is None else keyring
    keyring.beside = lambda: service.shared_keys
    access = Access(keyring, config.cors_origins, log)
    access.open.update(route.handler for route in ROUTES if route.open)
    access.operators.update(route.handler for route in ROUTES if route.operator)
    app = web.Application(middlewares=[connections.middleware, access.identify, answer_errors, access.authenticate])
    app.on_response_prepare.extend((access.on_prepare, finish, add_headers))
    app[SERVICE] = service
    app[FUNCTIONS] = functions
    app[METRICS] = metrics
    if isinstance(service, Service):
        app[MOVES] = Moves(service, machines or HostMachines(service), tenant_of=keyring.tenant)
    app[BODIES] = Bodies(MAX_BODY)
    app[AUDIT] = audit
    app[HOOKS] = hooks = Hooks(Targets(config.callback_hosts))
    messages: Messages = {"": message_of}
    app[MESSAGES] = messages
    service.call_back = functools.partial(call_back, app)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
        if route.method == "GET":  # as RFC 9110, 9.1 asks for
            app.router.add_head(route.path, route.handler)
    app[DIALECTS] = make_dialects(config.compat, PATHS)
    for dialect in app[DIALECTS]:
        dialect.mount(app)
        access.open.update(path.handler for path in dialect.paths() if path.open)
    if config.playground:
        for path, handler in playground.routes():
            app.router.add_get(path, handler)
            access.open.add(handler)

    async def close(_: web.Application) -> None:
        await hooks.close()
        log.close()
        audit.close()

    app.on_cleanup.append(close)
    return app


async def serve_http(
    service: Runner,
    functions: FunctionRunner,
    metrics: Measured,
    listener: socket.socket,
    stop: asyncio.Event,
    doors: Sequence[Door] = (),
    keyring: Keyring | None = None,
    machines: Machines | None = None,
) -> None:
    """Serve on `listener` and `doors` until `stop`; then no new request is taken, every run is
    ended, and those who wait are answered.
    """
    connections = Connections()
    app = make_app(service, functions, metrics, connections, keyring, machines)
    runner = web.AppRunner(app, **SERVER, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    http = runner.server
    assert http is not None  # noqa: S101 (setup makes it)
    narrow = {
        door.prefix: web.Server(http.request_handler, request_factory=Narrow(http.request_factory, door.prefix), **SERVER)
        for door in doors
        if door.prefix
    }
    watch = asyncio.create_task(connections.watch())
    handshakes = Handshakes()
    loop = asyncio.get_running_loop()
    try:
        servers = [await loop.create_unix_server(functools.partial(_connect, http, connections), sock=listener)]
        for door in doors:
            factory: Callable[[], asyncio.Protocol] = functools.partial(_connect, narrow[door.prefix] if door.prefix else http, connections)
            servers.append(await loop.create_server(handshakes.factory(door.tls, factory) if door.tls else factory, sock=door.listener))
        await stop.wait()
        for server in servers:
            server.close()
        await functions.close()
        await service.close()
    finally:
        watch.cancel()
        await handshakes.close()
        for other in narrow.values():  # as the runner does with its own
            other.pre_shutdown()
        await asyncio.gather(*(other.shutdown(SHUTDOWN_S) for other in narrow.values()))
        await runner.cleanup()


def _connect(http: web.Server, connections: Connections) -> Connection:
    return Connection(http(), connections)


@contextlib.asynccontextmanager
async def on_host(
    config: Config, sockets: Path, *, zygote: Callable[[], Zygote], gateways: Sequence[Gateway] = (), join: Join | None = None
) -> AsyncIterator[Behind]:
    """A service of this host, with its functions, served also through `gateways`."""
    metrics = Metrics()
    async with (
        Service(config, zygote, sockets=sockets, observer=metrics, groups=Groups.take()) as service,
        functions_beside(service) as functions,
        contextlib.AsyncExitStack() as opened,
    ):
        service.warm_up(config.languages)
        functions.begin()
        others = [await opened.enter_async_context(gateway(config, functions)) for gateway in gateways]
        if join is not None:
            others.append(await opened.enter_async_context(join(service, functions, metrics)))
        yield service, functions, metrics, others


async def serve(config: Config, backend: Backend) -> None:
    """Serve until SIGTERM or SIGINT, then let runs end for `drain_s`, and requests to functions
    within their own time, unless a second signal comes. No socket, machine or zygote is left when
    it returns. SIGHUP: read the certificate again, if there is one.

    Raises:
        MayflyError: it cannot begin.
    """
    drain, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (stop if drain.is_set() else drain).set())
    keyring = Keyring(default_path())
    if config.playground and not config.listen:
        config = replace(config, listen=playground.LISTEN)
    activated = activation.inherited()
    with (
        claim(config.socket, activated.unix) as (listener, folder),
        open_doors(config, addresses_of(config.compat), activated.tcp) as doors,
    ):
        if any(door.tls for door in doors):
            loop.add_signal_handler(signal.SIGHUP, renew, config, doors)
        async with backend(config, folder) as (service, functions, metrics, others):
            if isinstance(service, Service):
                left.go_on(service, keyring.tenant)
            names = ", ".join(f"{image.manifest.language}@{image.manifest.version}" for image in service.installed())
            budget = service.health().memory_budget >> 20
            where = ", ".join(filter(None, [str(listener.getsockname()), *(door.url for door in doors), *others]))
            log.info("listening at %s; languages: %s; %d MiB for machines", where, names or "none", budget)
            if config.playground:
                log.info("playground: %s", playground.invite(doors[0], keyring))
            if doors and not len(keyring):
                log.info("nobody can come in over TCP yet; make a key: mayfly key create NAME")
            if config.time_factor not in (0, 1):  # a gateway has none
                log.info("time limits are multiplied by %g", config.time_factor)
            activation.notify("READY=1")
            draining = asyncio.create_task(end_gracefully(service, functions, drain, stop))
            try:
                await serve_http(service, functions, metrics, listener, stop, doors, keyring)
            finally:
                draining.cancel()
            log.info("stopped")


def functions_beside(service: Service) -> Functions:
    """The functions that share a service's machines, memory and networks; to be closed before
    it.
    """
    one = service
    return Functions(one.config, one.spawner, one.admission, one.supply, one.images, one.networks, one.observer)


async def end_gracefully(service: Runner, functions: FunctionRunner, drain: asyncio.Event, stop: asyncio.Event) -> None:
    """When `drain` is set, take no new runs and requests, give runs under way `drain_s` and
    requests to functions the time that they have anyway (or none, if drain_s is 0), then set
    `stop`.
    """
    await drain.wait()
    activation.notify("STOPPING=1")
    within_s = service.config.here(service.config.drain_s)
    if service.under_way and within_s:
        log.info("stopping: %d runs may go on for %g s; a second signal ends them", service.under_way, within_s)
    if functions.under_way and within_s:
        log.info("stopping: %d requests to functions will be answered; a second signal ends them", functions.under_way)
    await asyncio.gather(service.drain(within_s), functions.drain(math.inf if within_s else 0))
    stop.set()


def renew(config: Config, doors: Sequence[Door]) -> None:
    """Read the certificate again, for connections to come."""
    for context in {door.tls for door in doors if door.tls}:
        try:
            load_tls(config, context)
            log.info("read the certificate %s again", config.tls_certificate)
        except ConfigError as error:
            log.error("%s; the last one is used on", error)


def main(config: Config, zygote: Callable[[], Zygote] | None = None, gateways: Sequence[Gateway] = (), *, join: Join | None = None) -> None:
    """`mayfly serve`: check the host, then serve, also through `gateways` besides HTTP, and for
    those whom it shall `join`.
    """
    prepare(config)
    config = config.scaled(time_factor(config))
    level, parts = sandbox(config)
    log.info("sandbox of machines: %s; %s", level, parts)
    config = replace(config, sandbox=level)
    run_server(config, functools.partial(on_host, zygote=zygote or Zygote.start, gateways=gateways, join=join))


def prepare(config: Config) -> None:
    """Begin to log, and look at what must show before anything is started.

    Raises:
        ConfigError: there is a mistake in it.
    """
    logging.basicConfig(level=logging.INFO, format="mayfly: %(message)s")
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it logs what clients do wrong; faults of ours are logged here
    make_dialects(config.compat, PATHS)


def run_server(config: Config, backend: Backend) -> None:
    """Serve what `backend` makes, until a signal ends it. See `prepare`. Nobody else of this user,
    as machines may be, reads its memory or its environment.
    """
    prctl("PR_SET_DUMPABLE", 0)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # each run has an output socket, each reader one more
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(serve(config, backend))
