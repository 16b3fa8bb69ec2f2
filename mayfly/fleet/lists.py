"""What operators have told the fleet, as one gateway knows it: API keys, images in a registry,
functions. Hosts are told of what concerns them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mayfly.errors import FleetError
from mayfly.fleet import catalog, keys
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.catalog import Ask, Offers
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.functions import creating
from mayfly.fleet.functions import messages as functions
from mayfly.fleet.functions.messages import CREATING, FleetFunction
from mayfly.fleet.message import decode, encode, name_of, queue_of, token_of
from mayfly.fleet.queues import Queues
from mayfly.fleet.roll import Roll
from mayfly.fleet.shared import Shared, answer

TRIES, AGAIN_S = 10, 0.5
Change = Callable[[bytes], Coroutine[Any, Any, bytes]]


class Lists:
    """The lists, in `bucket`. Images that are offered are told to `roll`, and all have their
    queues. `spawn` has work done beside.
    """

    def __init__(
        self, engine: Engine, bucket: Bucket, roll: Roll, queues: Queues, spawn: Callable[[Coroutine[Any, Any, None], str], object]
    ) -> None:
        self.keys = keys.shared_keys(bucket)
        self.images = catalog.images(bucket)
        self.snapshots = catalog.snapshots(bucket)
        self.functions: Shared[FleetFunction] = creating.shared_functions(bucket)
        self._engine, self._roll, self._queues, self._spawn = engine, roll, queues, spawn
        self._wanted: set[tuple[str, str]] = set()  # queues that are to be made
        self._functions: set[str] = set()  # the keys of those that have theirs

    async def listen(self, make: creating.Creating) -> None:
        """Do what operators ask for, with functions by `make`, and answer hosts."""
        listen = self._engine.listen
        changes: dict[str, Change] = {
            keys.SUBJECT: lambda data: keys.change_keys(self.keys, data),
            catalog.SUBJECT: lambda data: catalog.change_images(self.images, self.snapshots, data),
            creating.SUBJECT: make.change,
        }
        for subject, change in changes.items():
            await listen(subject, self._answering(change, f"change {subject}"), queue="gateways")
        await listen("fn.code.*", self._answering(make.code, "tell what a function is"), queue="gateways")
        await listen("offers.*", self._heard_ask, queue="gateways")

    def _answering(self, change: Change, name: str) -> Callable[[Message], None]:
        def heard(message: Message) -> None:
            self._spawn(answer(self._engine, message, change(message.data)), name)

        return heard

    def _heard_ask(self, message: Message) -> None:
        asked = decode(message.data, type=Ask)
        known = f"{self.images.revision}.{self.snapshots.revision}.{self.functions.revision}"
        told = Offers(known=known)
        if known != asked.known:
            told.offers = [offer for offer in (*self.images.all, *self.snapshots.all) if offer.what[1] == asked.arch]
            told.functions = [function for function in self.functions.all if function.arch == asked.arch]
        host = message.subject.split(".")[-1]
        self._spawn(self._engine.send(message.reply_to(host), encode(told)), "tell a host")

    async def refresh(self) -> None:
        """Take notice of what operators have changed, and have queues for it; those that cannot be
        made now are the next time.

        Raises:
            NobodyError, SilenceError, FleetError: not now.
        """
        await self.keys.refresh()
        if await self.images.refresh():
            self._roll.offered = [offer.image for offer in self.images.all]
            self._wanted |= {(image.manifest.arch, token_of(name_of(image))) for image in self._roll.offered}
        if await self.snapshots.refresh():
            self._roll.snapshots_offered = [(offer.snapshot, offer.arch) for offer in self.snapshots.all if offer.snapshot]
            self._wanted |= {(arch, queue_of(held.image, held.name)) for held, arch in self._roll.snapshots_offered}
        await self.functions.refresh()
        for function in self.functions.all:
            if function.key not in self._functions:  # there may have been another of its name, which was removed
                queue = function.arch, functions.queue_of(function.function.name)
                self._queues.forget(*queue)
                self._wanted.add(queue)
        self._functions = {function.key for function in self.functions.all}
        self._wanted |= {(host.about.arch, CREATING) for host in self._roll if host.about}
        for queue in list(self._wanted):
            await self._queues.ensure(*queue)
            self._wanted.discard(queue)

    async def load(self) -> None:
        """Know the lists.

        Raises:
            FleetError: they cannot be had.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                await self.refresh()
            except (NobodyError, SilenceError) as error:
                if not tries_left:
                    hint = "see that the servers are up, with JetStream, and most of them"
                    raise FleetError(f"the fleet's servers do not say what there is: {error or 'nobody answers'}", hint=hint) from error
                await asyncio.sleep(AGAIN_S)
            else:
                return
