"""The API keys of a whole fleet, which its gateways keep. A gateway's own machine may have keys
besides.
"""

from collections.abc import Sequence

import msgspec

from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.message import decode, encode
from mayfly.fleet.shared import Shared, ask
from mayfly.host import keys
from mayfly.host.keys import ApiKey

SUBJECT = "keys"


class KeyChange(msgspec.Struct, kw_only=True):
    """A key to be added, as JSON, or the name of one to be revoked; neither: nothing changes."""

    add: bytes = b""
    revoke: str = ""


def shared_keys(bucket: Bucket) -> Shared[ApiKey]:
    """The keys, the oldest first, as their file has them."""
    return Shared(bucket, "keys", keys.from_json, keys.to_json)


async def change_keys(shared: Shared[ApiKey], data: bytes) -> bytes:
    """Do what an operator asks for."""
    change = decode(data, type=KeyChange)

    def edit(known: list[ApiKey]) -> None:
        if change.add:
            keys.add(known, msgspec.json.decode(change.add, type=ApiKey))
        elif change.revoke:
            keys.remove(known, change.revoke)

    return await shared.change(edit)


async def change(engine: Engine, wanted: KeyChange) -> Sequence[ApiKey]:
    """Have a gateway change the fleet's keys; all of them after that.

    Raises:
        ConfigError: the name is taken, or there is no such key.
        FleetError: no gateway answers.
    """
    return keys.from_json(await ask(engine, SUBJECT, encode(wanted)))
