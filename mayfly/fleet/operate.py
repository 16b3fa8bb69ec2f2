"""What an operator does with a fleet: sees its hosts, and has them drained."""

import asyncio
from typing import NamedTuple

from mayfly.errors import FleetError, HostError
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.message import About, Answer, Beat, Wish, decode, encode
from mayfly.fleet.shared import readable
from mayfly.fleet.wire import error_of
from mayfly.images.manifest import Manifest

LISTEN_S = 1.3
"""Longer than the time from one beat of a host to the next."""


class Seen(NamedTuple):
    """A host as it is now."""

    name: str
    beat: Beat
    about: About

    @property
    def languages(self) -> list[str]:
        """What it can run."""
        manifests: list[Manifest] = []
        readable(self.about.images, lambda text: manifests.append(Manifest.from_json(text)))
        return [f"{manifest.language}@{manifest.version}" for manifest in manifests]


async def look(engine: Engine) -> list[Seen]:
    """The hosts that are there, by name."""
    beats: dict[str, Beat] = {}

    def hear(message: Message) -> None:
        beats[message.subject.partition(".")[2]] = decode(message.data, type=Beat)

    await engine.listen("beat.*", hear)
    await asyncio.sleep(LISTEN_S)

    async def ask(name: str) -> About | None:
        try:
            return decode(await engine.ask(f"about.{name}", b"", 2), type=About)
        except (NobodyError, SilenceError):
            return None

    names = sorted(beats)
    abouts = await asyncio.gather(*map(ask, names))
    return [Seen(name, beats[name], about) for name, about in zip(names, abouts, strict=True) if about is not None]


async def wish(engine: Engine, name: str, *, drain: bool, limit_bytes_s: int = 0) -> None:
    """Have a host take no more runs, or take some again; those under way go on. Of machines that it
    gives away so many bytes are sent a second, 0: no limit.

    Raises:
        HostError: there is no such host, or it does not answer.
    """
    try:
        answer = decode(await engine.ask(f"wish.{name}", encode(Wish(drain=drain, limit_bytes_s=limit_bytes_s))), type=Answer)
    except (NobodyError, SilenceError) as error:
        raise HostError(f"no host {name!r} answers", hint="mayfly fleet list shows those that are there") from error
    if (problem := error_of(answer.error)) is not None:
        raise problem


async def wait_until_idle(engine: Engine, name: str, within_s: float) -> None:
    """Wait until a host that is drained has no runs.

    Raises:
        FleetError: it has some after that time.
    """
    idle = asyncio.Event()

    def hear(message: Message) -> None:
        beat = decode(message.data, type=Beat)
        if beat.draining and not beat.running:
            idle.set()

    await engine.listen(f"beat.{name}", hear)
    try:
        async with asyncio.timeout(within_s):
            await idle.wait()
    except TimeoutError as error:
        raise FleetError(f"{name} has runs after {within_s:g} s", hint="give it longer with --wait") from error
