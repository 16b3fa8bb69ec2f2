"""That no two members of a fleet have one name: what is for the one would come to the other."""

import contextlib

from mayfly.errors import FleetError
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.tasks import Spawn


async def claim_name(engine: Engine, spawn: Spawn) -> None:
    """Answer to whoever asks whether somebody is there by the engine's name.

    Raises:
        FleetError: somebody else is.
    """
    place = f"ping.{engine.name}"
    with contextlib.suppress(NobodyError, SilenceError):
        await engine.ask(place, b"", 1)
        raise FleetError(f"the fleet has a member called {engine.name!r} already", hint="give this one another --name")
    await engine.listen(place, lambda message: spawn(engine.send(message.reply, b""), "pong"))
