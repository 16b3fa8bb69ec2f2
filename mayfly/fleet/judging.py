"""How a gateway answers the questions of hosts: may one begin, and is what it brings the result?"""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import FullError, NobodyError, SilenceError
from mayfly.fleet.message import ANY, Verdict, encode
from mayfly.fleet.tasks import Spawn

log = logging.getLogger(__name__)
GATEWAYS = "gateways"
"""Of them one answers what is asked of all."""
Judge = Callable[[Message], Coroutine[Any, Any, str | Verdict | None]]
"""Gives a verdict, or None: there is none now."""


async def judge(engine: Engine, spawn: Spawn, prefix: str, *, begin: Judge, settle: Judge) -> None:
    """Answer `begin` and `settle` under the prefix of their subjects from now on."""

    def asked(judge: Judge) -> Callable[[Message], None]:
        return lambda message: reply(engine, spawn, message, judge)

    await engine.listen(f"{prefix}begin.*.*", asked(begin), queue=GATEWAYS)
    await engine.listen(f"{prefix}settle.{engine.name}.*.*", asked(settle))
    await engine.listen(f"{prefix}settle.{ANY}.*.*", asked(settle), queue=GATEWAYS)


def reply(engine: Engine, spawn: Spawn, message: Message, judge: Judge) -> None:
    """Answer a host with the verdict; with `later` if there is none now: it asks again."""

    async def answer() -> None:
        verdict: str | Verdict | None = None
        try:
            verdict = await judge(message)
        except (FullError, NobodyError, SilenceError) as error:
            log.warning("fleet: %s has no verdict now: %s", message.subject, error)
        host = message.subject.split(".")[-2]
        await engine.send(message.reply_to(host), encode(verdict if isinstance(verdict, Verdict) else Verdict(verdict=verdict or "later")))

    spawn(answer(), f"answer {message.subject}")
