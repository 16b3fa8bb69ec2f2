"""Start a guest: boot its machine, or restore it from a snapshot and give it an identity of its
own.
"""

import asyncio
import enum
import os
import time

from mayfly.errors import BootError, ConsoleTailError, GuestError, MayflyError
from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.told import network_words
from mayfly.protocol.conversation import Conversation, Failed
from mayfly.protocol.frames import Hello, Moved, Resumed
from mayfly.protocol.report import Ended
from mayfly.schema import Record
from mayfly.vmm.config import NetworkConfig

ENTROPY_BYTES = 64
CLOCK_ERROR_S = 0.03
"""How far a restored machine's clock may be behind this host's."""
CLOCK_ATTEMPTS = 3
"""To set it so; a host that is slower than that has a clock that is behind by as much."""


class StartKind(enum.StrEnum):
    """How a run got its machine."""

    COLD = "cold"
    RESTORED = "restored"
    WARM = "warm"
    MOVED = "moved"


class Guest(Record, frozen=True, kw_only=True):
    """The machine that was `wanted`, whose agent has said `hello`, and the conversation with it."""

    wanted: Wanted
    process: VmmProcess
    conversation: Conversation
    hello: Hello
    kind: StartKind


async def start(spawner: Spawner, wanted: Wanted) -> Guest:
    """Boot the machine, or restore it if its configuration says from where.

    Raises:
        MayflyError: it did not come up. It is gone by then, and its console's tail is with the
            error.
    """
    process = await spawner.spawn(wanted.machine)
    try:
        manifest = wanted.image.manifest
        conversation = Conversation(arch=manifest.arch, end_marker=manifest.end_marker, loaded=wanted.loaded)
        async with asyncio.timeout(wanted.timeout_s):
            if wanted.machine.restore:
                hello = await resume(process, conversation, wanted.machine.network)
            else:
                hello = await _greeting(process, conversation)
    except BaseException as caught:
        ended = await process.stop(0 if isinstance(caught, asyncio.CancelledError) else 1)
        if isinstance(caught, TimeoutError):
            hint = "the console's tail says how far it came; raise boot_timeout_s if this host is slow"
            raise explain(BootError(f"no HELLO from the agent within {wanted.timeout_s:g} s", hint=hint), ended) from caught
        if isinstance(caught, GuestError):
            hint = "the console's tail says how far it came"
            raise explain(BootError("the machine ended before its agent said HELLO", hint=hint), ended) from caught
        if isinstance(caught, MayflyError):
            raise explain(caught, ended) from caught
        raise
    kind = StartKind.RESTORED if wanted.machine.restore else StartKind.COLD
    return Guest(wanted=wanted, process=process, conversation=conversation, hello=hello, kind=kind)


async def resume(process: VmmProcess, conversation: Conversation, network: NetworkConfig | None = None) -> Hello:
    """Make a restored machine another than its siblings, with this network of its own; what it
    answers.

    The time in RESUMED is that of its sending; where the answer to the first one took long, as the
    machine was still being made, it is said again to the machine that is up.
    """
    boot_id, name = _own()
    words = " ".join(network_words(network))
    for _ in range(CLOCK_ATTEMPTS):
        sent = time.monotonic()
        await process.write(conversation.resumed(Resumed(time.time_ns(), boot_id, name, words, os.urandom(ENTROPY_BYTES))))
        hello = await _greeting(process, conversation)
        if time.monotonic() - sent < CLOCK_ERROR_S:
            break
        words = ""  # they are in force
    process.pre_fault()  # not earlier: the answer would wait for it
    return hello


def going_on(conversation: Conversation, *, clone: bool = False, ago_s: int = 0) -> bytes:
    """The frame for a machine that goes on in the middle of a run, as the first on its channel: new
    entropy and the time of day, or that `ago_s` before, and for a `clone` a boot id and a name of
    its own.

    Raises:
        MayflyError: as Conversation.moved.
    """
    boot_id, name = _own() if clone else (bytes(16), "")
    return conversation.moved(Moved(time.time_ns() - ago_s * 10**9, boot_id, name, "", os.urandom(ENTROPY_BYTES)))


def _own() -> tuple[bytes, str]:
    """A boot id and a host name that no other machine has."""
    return os.urandom(16), f"mayfly-{os.urandom(4).hex()}"


async def _greeting(process: VmmProcess, conversation: Conversation) -> Hello:
    while data := await process.read():
        for event in conversation.feed(data):
            if isinstance(event, Hello):
                return event
            if isinstance(event, Failed):
                raise event.error
    raise GuestError("the machine ended")


def explain(error: MayflyError, ended: Ended) -> MayflyError:
    """The error to report: the vmm process's own if it had one, else `error` with the console's
    tail.
    """
    error = ended.error or error
    if isinstance(error, ConsoleTailError) and not error.console:
        error.console = ended.console
    return error
