"""Buckets of a fleet's engine: values by key, of which each can be created once."""

import asyncio
from typing import NamedTuple

import nats
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from mayfly.errors import FleetError
from mayfly.fleet.failures import translated

MAX_AGE_S = 3600
"""How long a value is kept after it was written: a result, and what is known of a run, which the
host that has it renews.
"""
RENEW_S = MAX_AGE_S / 4
"""From one time to the next that this is done."""
WRONG_SEQUENCE = 10071
"""The code for a subject whose last message is another one than expected."""


class Entry(NamedTuple):
    """A value of a bucket, and its revision."""

    value: bytes
    revision: int


class Bucket:
    """Values by key. A key that was created cannot be created again."""

    def __init__(self, store: KeyValue, name: str, stream: JetStreamContext) -> None:
        self._store, self._name, self._stream = store, name, stream

    async def get(self, key: str) -> Entry | None:
        """The value, if there is one. Raises SilenceError."""
        with translated():
            try:
                found = await self._store.get(key)
            except KeyNotFoundError:
                return None
        return Entry(found.value or b"", found.revision or 0)

    async def create(self, key: str, value: bytes) -> int:
        """Store the value of a key that has none; its revision, or 0 if it has one. Raises
        SilenceError: it may have been stored or not.
        """
        with translated():
            try:
                return int(await self._store.create(key, value))
            except KeyWrongLastSequenceError:
                return 0

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Replace the value of that revision; the new one, or 0 if it was replaced meanwhile. The
        revision 0 is that of a key that never had any.
        """
        with translated():
            try:
                return int(await self._store.update(key, value, last=revision))
            except (KeyWrongLastSequenceError, KeyNotFoundError):
                return 0

    async def put(self, key: str, value: bytes) -> None:
        """Store a value, whatever was there."""
        with translated():
            await self._store.put(key, value)

    async def delete(self, key: str) -> None:
        """Remove the key; it can be created again."""
        with translated():
            await self._store.purge(key)

    async def bar(self, key: str) -> bool:
        """Have a key that never had a value look removed: an `update` of revision 0, which may be
        on its way, fails then. False: it has or had one.
        """
        headers = {"KV-Operation": "DEL", "Nats-Expected-Last-Subject-Sequence": "0"}
        with translated():
            try:
                await self._stream.publish(f"$KV.{self._name}.{key}", b"", headers=headers)
            except APIError as error:
                if error.err_code == WRONG_SEQUENCE:
                    return False
                raise
        return True


class Buckets(NamedTuple):
    """The fleet's: runs by their ids, their results, accounts by API keys, and what stays."""

    runs: "Bucket"
    results: "Bucket"
    accounts: "Bucket"
    fleet: "Bucket"


async def prepare(stream: JetStreamContext, replicas: int) -> Buckets:
    """Make what the fleet needs, if it is not there.

    Raises:
        FleetError: it cannot be made.
    """
    found = []
    for name in Buckets._fields:
        for tries_left in reversed(range(10)):  # the cluster may still be choosing its leader
            try:
                found.append(Bucket(await _find(stream, name, replicas), name, stream))
                break
            except (nats.errors.Error, TimeoutError) as error:
                if not tries_left:
                    hint = "switch JetStream on, and see that enough servers are up"
                    raise FleetError(f"the bucket {name} cannot be made: {error}", hint=hint) from error
                await asyncio.sleep(0.5)
    return Buckets(*found)


async def _find(stream: JetStreamContext, name: str, replicas: int) -> KeyValue:
    try:
        return await stream.key_value(name)
    except BucketNotFoundError:
        ttl = None if name == "fleet" else MAX_AGE_S
        config = KeyValueConfig(bucket=name, ttl=ttl, history=1, storage=StorageType.FILE, replicas=replicas)
        return await stream.create_key_value(config)
