"""The API keys of a whole fleet: gateways keep them, an operator has one of them change them, and
all take notice within a second. A gateway's own machine may have keys besides.
"""

import logging
from collections.abc import Sequence

import msgspec

from mayfly.errors import FleetError, MayflyError
from mayfly.fleet.engine import Bucket, Engine, Message, NobodyError, SilenceError
from mayfly.fleet.message import decode, encode, error_of, wire
from mayfly.host import keys
from mayfly.host.keys import ApiKey

log = logging.getLogger(__name__)
SUBJECT = "keys"
PLACE = "keys"
"""Where in the bucket all of them are."""
TRIES = 10


class KeyChange(msgspec.Struct, kw_only=True):
    """A key to be added, as JSON, or the name of one to be revoked; neither: nothing changes."""

    add: bytes = b""
    revoke: str = ""


class KeyAnswer(msgspec.Struct, kw_only=True):
    """All keys after that, as the file of keys has them, or why nothing was changed."""

    keys: bytes = b""
    error: dict[str, object] | None = None


class SharedKeys:
    """The keys as one gateway knows them.

    Attributes:
        all: the keys, the oldest first.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.all: tuple[ApiKey, ...] = ()
        self._bucket = bucket
        self._revision = 0

    async def refresh(self) -> None:
        """Take notice of changes. Raises SilenceError."""
        entry = await self._bucket.get(PLACE)
        if entry is not None and entry.revision != self._revision:
            self.all, self._revision = keys.from_json(entry.value), entry.revision

    async def answer(self, engine: Engine, message: Message) -> None:
        """Do what an operator asks for."""
        answer = KeyAnswer()
        try:
            answer.keys = keys.to_json(await self._change(decode(message.data, type=KeyChange)))
        except MayflyError as error:
            answer.error = wire(error)
        except (ValueError, NobodyError, SilenceError) as error:
            answer.error = wire(FleetError(f"the keys cannot be changed now: {error}", hint="try again"))
        await engine.send(message.reply, encode(answer))

    async def _change(self, change: KeyChange) -> Sequence[ApiKey]:
        for _ in range(TRIES):
            entry = await self._bucket.get(PLACE)
            known = list(keys.from_json(entry.value)) if entry else []
            if change.add:
                keys.add(known, msgspec.json.decode(change.add, type=ApiKey))
            elif change.revoke:
                keys.remove(known, change.revoke)
            else:
                return known
            data = keys.to_json(known)
            if await (self._bucket.update(PLACE, data, entry.revision) if entry else self._bucket.create(PLACE, data)):
                await self.refresh()
                return known
        raise FleetError("others change the keys at the same time", hint="try again")


async def change(engine: Engine, wanted: KeyChange) -> Sequence[ApiKey]:
    """Have a gateway change the fleet's keys; all of them after that.

    Raises:
        ConfigError: the name is taken, or there is no such key.
        FleetError: no gateway answers.
    """
    try:
        answer = decode(await engine.ask(SUBJECT, encode(wanted)), type=KeyAnswer)
    except (NobodyError, SilenceError) as error:
        raise FleetError("no gateway of the fleet answers", hint="start one: mayfly gateway") from error
    if (problem := error_of(answer.error)) is not None:
        raise problem
    return keys.from_json(answer.keys)
