"""What all gateways of a fleet know: lists that operators change through any of them. The others
take notice within a second.
"""

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from mayfly.errors import FleetError, MayflyError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.message import decode, encode
from mayfly.fleet.wire import error_of, wire

_T = TypeVar("_T")
log = logging.getLogger(__name__)
TRIES = 10


def readable(items: Iterable[_T], read: Callable[[_T], object]) -> list[_T]:
    """Those that `read` can read: what another version has put there is left out."""
    found = []
    for item in items:
        try:
            read(item)
        except (MayflyError, ValueError) as error:
            log.warning("fleet: something is left out that cannot be read: %s", error)
        else:
            found.append(item)
    return found


class Done(msgspec.Struct, kw_only=True):
    """What came of an operator's wish, or why nothing did."""

    data: bytes = b""
    error: Mapping[str, Any] | None = None


class Shared(Generic[_T]):
    """A list that lies at `place` in the bucket, as `dump` and `load` have it. What `read` cannot
    read stays there.

    Attributes:
        all: what is in it.
        revision: what tells one such list from the next.
    """

    def __init__(
        self,
        bucket: Bucket,
        place: str,
        load: Callable[[bytes], Sequence[_T]],
        dump: Callable[[Sequence[_T]], bytes],
        read: Callable[[_T], object] = lambda _: None,
    ) -> None:
        self.all: Sequence[_T] = ()
        self._bucket, self._place, self._load, self._dump = bucket, place, load, dump
        self._read = read
        self.revision = 0

    async def refresh(self) -> bool:
        """Take notice of changes; whether there are any. Raises SilenceError."""
        entry = await self._bucket.get(self._place)
        if entry is None or entry.revision == self.revision:
            return False
        self.all, self.revision = readable(self._load(entry.value), self._read), entry.revision
        return True

    async def change(self, edit: Callable[[list[_T]], None]) -> bytes:
        """Have `edit` change the list; what it is then, as it is kept.

        Raises:
            SilenceError, FleetError: not now.
            MayflyError: `edit` raises it.
        """
        for _ in range(TRIES):
            entry = await self._bucket.get(self._place)
            before = list(self._load(entry.value)) if entry else []
            after = list(before)
            edit(after)
            data = self._dump(after)
            if after == before:
                return data
            if await (self._bucket.update(self._place, data, entry.revision) if entry else self._bucket.create(self._place, data)):
                return data
        raise FleetError("others change the same at this time", hint="try again")


async def answer(engine: Engine, message: Message, work: Coroutine[Any, Any, bytes]) -> None:
    """Do what an operator asks for, and say what came of it."""
    done = Done()
    try:
        done.data = await work
    except MayflyError as error:
        done.error = wire(error)
    except (ValueError, NobodyError, SilenceError) as error:
        done.error = wire(FleetError(f"this cannot be done now: {error}", hint="try again"))
    await engine.send(message.reply, encode(done))


async def ask(engine: Engine, subject: str, data: bytes, timeout_s: float = 5.0) -> bytes:
    """Have a gateway do something; what came of it.

    Raises:
        FleetError: no gateway answers.
        MayflyError: that with which it failed.
    """
    try:
        done = decode(await engine.ask(subject, data, timeout_s), type=Done)
    except (NobodyError, SilenceError) as error:
        raise FleetError("no gateway of the fleet answers", hint="start one: mayfly gateway") from error
    if (problem := error_of(done.error)) is not None:
        raise problem
    return done.data
