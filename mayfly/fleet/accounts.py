"""What API keys have under way in a whole fleet: one account for each key that has limits, changed
by whichever gateway takes a run or stores a result.

A run's charge goes when its result is stored. One that stays behind because a gateway died between
the two is found when its key would be refused: each charged run is looked for then.
"""

import asyncio
import logging
import time
import weakref

import msgspec

from mayfly.errors import FleetError, KeyLimitError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.message import decode, encode, id_of
from mayfly.fleet.results import Results
from mayfly.host.admission import Tenant

log = logging.getLogger(__name__)
GRACE_S = 30.0
"""How old a charge is whose run is not registered or not queued: a gateway may be about to do that.
"""
SWEEP_S = 1.0
"""From one look for charges that stayed behind to the next."""
TRIES = 50
"""To change an account that others change meanwhile."""


class Queued(msgspec.Struct, kw_only=True):
    """Where the work is of what is registered, a run or a request to a function."""

    token: str
    arch: str = ""
    lang: str = ""
    host: str = ""
    delivered: int = 1


class Account(msgspec.Struct, kw_only=True):
    """What a key has under way: bytes of machines, and since which Unix time, by the runs' ids. At
    the time `at` it might begin `left` runs.
    """

    charges: dict[str, tuple[int, float]] = {}
    left: float = 0.0
    at: float = 0.0


class Accounts:
    """The accounts of a fleet's keys, in `bucket`."""

    def __init__(self, engine: Engine, bucket: Bucket, registry: Bucket, results: Results) -> None:
        self._engine = engine
        self._bucket, self._registry, self._results = bucket, registry, results
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._swept_at: dict[str, float] = {}

    async def take(self, tenant: Tenant, run_id: str, memory: int) -> bool:
        """Charge a run to a key; whether there is anything to give back. The same run is charged
        once.

        Raises:
            KeyLimitError: a limit is reached now.
            UnprocessableError: such a machine is over it at any time.
            SilenceError, FleetError: not now.
        """
        if not (tenant.rate or tenant.concurrency or tenant.memory):
            return False
        async with self._lock(tenant.name):
            for _ in range(TRIES):
                account, revision = await self._load(tenant.name)
                if run_id in account.charges:
                    return True
                now = time.time()
                left = float(tenant.rate)
                if revision:
                    left = min(left, account.left + max(0.0, now - account.at) * tenant.rate / 60)
                used = sum(bytes_used for bytes_used, _ in account.charges.values())
                try:
                    tenant.counted(len(account.charges), used, left).check(memory)
                except KeyLimitError:
                    if not await self._sweep(tenant.name, account):
                        raise
                else:
                    account.left, account.at = left - 1, now
                    account.charges[run_id] = (memory, now)
                if await self._save(tenant.name, account, revision) and run_id in account.charges:
                    return True
        raise FleetError("too many gateways use this key at once", hint="try again")

    async def give_back(self, owner: str, run_id: str) -> None:
        """The run is over. What cannot be stored now is found later."""
        try:
            async with self._lock(owner):
                for _ in range(TRIES):
                    account, revision = await self._load(owner)
                    if account.charges.pop(run_id, None) is None or await self._save(owner, account, revision):
                        return
        except (NobodyError, SilenceError) as error:
            log.warning("fleet: the run %s stays charged for a while: %s", run_id, error)

    async def renew(self, owner: str) -> None:
        """Keep a key's account for as long from now on. Raises SilenceError."""
        account, revision = await self._load(owner)
        if revision:
            await self._save(owner, account, revision)  # if not, it was written meanwhile

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _load(self, name: str) -> tuple[Account, int]:
        entry = await self._bucket.get(name)
        return (decode(entry.value, type=Account), entry.revision) if entry else (Account(), 0)

    async def _save(self, name: str, account: Account, revision: int) -> bool:
        data = encode(account)
        return bool(await (self._bucket.update(name, data, revision) if revision else self._bucket.create(name, data)))

    async def _sweep(self, name: str, account: Account) -> bool:
        """Take out of an account what no longer exists; whether there was any."""
        now = asyncio.get_running_loop().time()
        if now - self._swept_at.get(name, -SWEEP_S) < SWEEP_S:
            return False
        self._swept_at[name] = now
        gone = await asyncio.gather(*(self._is_gone(run_id, since) for run_id, (_, since) in account.charges.items()))
        for run_id in [run_id for run_id, is_gone in zip(account.charges, gone, strict=True) if is_gone]:
            log.warning("fleet: the run %s was charged to a key, and is over", run_id)
            del account.charges[run_id]
        return any(gone)

    async def _is_gone(self, run_id: str, since: float) -> bool:
        if await self._results.has(run_id):
            return True
        if abs(time.time() - since) <= GRACE_S:
            return False
        entry = await self._registry.get(run_id)
        if entry is None:
            return True
        queued = decode(entry.value, type=Queued)
        if queued.host and (queued.delivered or await self._is_there(queued.host)):
            return False
        if await self._engine.holds(queued.arch, queued.lang, id_of(run_id, queued.token)):
            return False
        if queued.host:  # it was handed the run, and is gone; so is the gateway, or will have the run begun anew
            return True
        if not await self._results.has(run_id):  # whose work is done, it has one
            log.warning("fleet: %s was registered, and its gateway died before it was queued", run_id)
            await self._registry.delete(run_id)
        return True

    async def _is_there(self, host: str) -> bool:
        try:
            await self._engine.ask(f"ping.{host}", b"", 1)
        except NobodyError:
            return False
        except SilenceError:  # it hangs: the run stays charged until that is known
            return True
        return True
