"""A whole server for tests, on a Unix socket and on loopback TCP; its machines are ordinary
processes (api_fakes.py).
"""

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from mayfly.api.app import functions_beside, serve_http
from mayfly.api.compat.dialects import addresses_of
from mayfly.functions.service import Functions
from mayfly.host.keys import create, default_path
from mayfly.host.listen import Door, open_doors
from mayfly.host.metrics import Metrics
from mayfly.host.sockets import claim
from mayfly.runs.moves.link import Machines
from mayfly.runs.service import Service
from tests.kit.api_fakes import factory, small_config


class Served(NamedTuple):
    """A server under way: its doors over TCP, and a client of its Unix socket."""

    service: Service
    functions: Functions
    doors: tuple[Door, ...]
    operator: aiohttp.ClientSession

    @property
    def url(self) -> str:
        """Of the first door."""
        return self.doors[0].url

    def client(self, token: str = "", **options: Any) -> aiohttp.ClientSession:
        """A client of the first door."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return aiohttp.ClientSession(self.url, headers=headers, **options)


def serving(tmp_path: Path, scenario: Callable[[Served], Awaitable[Any]], fault: str = "", limit_s: float = 60, **changes: Any) -> Any:
    """Run a scenario against a server with one door, and stop the server."""

    async def whole(folder: Path) -> Any:
        async with _server(tmp_path, folder, fault, **changes) as served:
            return await asyncio.wait_for(scenario(served), limit_s)

    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:  # short enough for sockets
        return asyncio.run(whole(Path(name)))


def serving_two(
    tmp_path: Path, scenario: Callable[[Served, Served], Awaitable[Any]], machines: Callable[[Service], Machines], limit_s: float = 60
) -> Any:
    """Run a scenario against two servers, between which runs move as `machines` has it."""

    async def whole(folder: Path) -> Any:
        changes: dict[str, Any] = {"machines": machines, "interactive_wall_s": 600.0}
        async with _server(tmp_path, folder / "a", **changes) as here, _server(tmp_path, folder / "b", **changes) as there:
            return await asyncio.wait_for(scenario(here, there), limit_s)

    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        return asyncio.run(whole(Path(name)))


@contextlib.asynccontextmanager
async def _server(
    tmp_path: Path, folder: Path, fault: str = "", machines: Callable[[Service], Machines] | None = None, **changes: Any
) -> AsyncIterator[Served]:
    config = small_config(tmp_path, **{"socket": folder / "mayfly" / "api.sock", "listen": ("127.0.0.1:0",), **changes})
    stop = asyncio.Event()
    with claim(config.socket) as (listener, runs), open_doors(config, addresses_of(config.compat)) as doors:
        async with Service(config, factory(fault), sockets=runs) as service, functions_beside(service) as functions:
            how = machines(service) if machines else None
            server = asyncio.create_task(serve_http(service, functions, Metrics(), listener, stop, doors, machines=how))
            connector = aiohttp.UnixConnector(path=str(config.socket))
            async with aiohttp.ClientSession("http://mayfly", connector=connector) as operator:
                try:
                    yield Served(service, functions, doors, operator)
                finally:
                    stop.set()
                    await server


def make_key(name: str, *, moves: bool = False, **limits: int) -> str:
    """A key of this name, and its token."""
    return create(default_path(), name, moves=moves, **limits)


def make_certificate(folder: Path, name: str = "localhost", *, address: str = "127.0.0.1", by: tuple[Path, ...] = ()) -> tuple[Path, Path]:
    """A certificate for `name` and `address`, and its key, as files in `folder`. `by` are those of
    its issuer, who else is itself.
    """
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:{address}"]
    subject += [word for option, file in zip(("-CA", "-CAkey"), by, strict=False) for word in (option, str(file))]
    subprocess.run([*command, *subject, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key
