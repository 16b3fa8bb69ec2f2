"""The two ways into a fleet: as a host, and as a gateway."""

import contextlib
import platform
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from mayfly.errors import ConfigError
from mayfly.fleet.engine import DEFAULT_ACK_WAIT_S, Credentials, Engine
from mayfly.fleet.functions.gateway import FleetFunctions
from mayfly.fleet.gateway import Gateway
from mayfly.fleet.measures import Measures
from mayfly.fleet.steps import noted
from mayfly.fleet.worker import joined
from mayfly.functions.service import Functions
from mayfly.host.config import Config
from mayfly.host.metrics import Metrics
from mayfly.runs.moves.link import Machines
from mayfly.runs.service import Service
from mayfly.schema import Record

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Place(Record, frozen=True, kw_only=True):
    """Where a fleet is, and who comes: servers' URLs, a name that nobody else in it has.
    `ack_wait_s` is how long a host may be silent, and `replicas` how many servers have each run;
    both are the fleet's first gateway's to say.
    """

    urls: tuple[str, ...]
    name: str = ""
    credentials: Credentials = Credentials()
    replicas: int = 1
    ack_wait_s: float = DEFAULT_ACK_WAIT_S

    def named(self, kind: str) -> str:
        """The name: of a host its own unless another is given, of a gateway a new one."""
        usual = re.sub(r"[^A-Za-z0-9_-]", "-", platform.node())[:40] or "host"
        name = self.name or (usual if kind == "host" else f"{usual}-{secrets.token_hex(3)}")
        if not NAME.fullmatch(name):
            raise ConfigError(f"the name {name[:80]!r} cannot be used in a fleet", hint="take 1 to 64 letters, digits, - and _")
        return name


Served = tuple[Gateway, FleetFunctions, Measures, tuple[str, ...]]
"""What a gateway's API stands before, and where it serves."""


@contextlib.asynccontextmanager
async def join(
    service: Service, functions: Functions, metrics: Metrics, place: Place, machines: Machines | None = None
) -> AsyncIterator[str]:
    """Have a service work for the fleet too, whose `machines` move as usual if they are not given;
    gives the name that it has there.

    Raises:
        FleetError, ConfigError: it cannot be joined.
    """
    name = place.named("host")
    with noted(service.config.audit_log, name):
        async with (
            Engine.connect(place.urls, name, place.credentials) as engine,
            joined(service, functions, metrics, engine, ack_wait_s=place.ack_wait_s, machines=machines),
        ):
            yield f"the fleet at {place.urls[0]}, as {name}"


@contextlib.asynccontextmanager
async def gateway(config: Config, sockets: Path, place: Place) -> AsyncIterator[Served]:
    """A gateway to the fleet.

    Raises:
        FleetError, ConfigError: it cannot be reached, or not be set up.
    """
    name = place.named("gateway")
    with noted(config.audit_log, name):
        async with Engine.connect(place.urls, name, place.credentials) as engine:
            buckets = await engine.prepare(place.replicas)
            runner = Gateway(config, engine, buckets, sockets=sockets, replicas=place.replicas, ack_wait_s=place.ack_wait_s)
            await runner.open()
            try:
                yield runner, runner.functions, Measures(engine, runner), (f"gateway {name} of the fleet at {place.urls[0]}",)
            finally:
                await runner.close()
