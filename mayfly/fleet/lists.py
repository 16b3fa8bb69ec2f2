"""What operators have told the fleet, as one gateway knows it: API keys, images in a registry,
functions. Hosts are told of what concerns them.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from mayfly.fleet import catalog, keys
from mayfly.fleet.accept import Queues
from mayfly.fleet.catalog import Ask, Offers
from mayfly.fleet.engine import Bucket, Engine, Message
from mayfly.fleet.functions import creating
from mayfly.fleet.functions.messages import CREATING, FleetFunction, queue_of
from mayfly.fleet.message import decode, encode, name_of, token_of
from mayfly.fleet.roll import Roll
from mayfly.fleet.shared import Shared, answer

Change = Callable[[bytes], Coroutine[Any, Any, bytes]]


class Lists:
    """The lists, in `bucket`. Images that are offered are told to `roll`, and all have their
    queues. `spawn` has work done beside.
    """

    def __init__(
        self, engine: Engine, bucket: Bucket, roll: Roll, queues: Queues, spawn: Callable[[Coroutine[Any, Any, None], str], object]
    ) -> None:
        self.keys = keys.shared_keys(bucket)
        self.images = catalog.catalog(bucket)
        self.functions: Shared[FleetFunction] = creating.shared_functions(bucket)
        self._engine, self._roll, self._queues, self._spawn = engine, roll, queues, spawn

    async def listen(self, make: creating.Creating) -> None:
        """Do what operators ask for, with functions by `make`, and answer hosts."""
        listen = self._engine.listen
        changes: dict[str, Change] = {
            keys.SUBJECT: lambda data: keys.change_keys(self.keys, data),
            catalog.SUBJECT: lambda data: catalog.change_images(self.images, data),
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
        known = f"{self.images.revision}.{self.functions.revision}"
        told = Offers(known=known)
        if known != asked.known:
            told.offers = [offer for offer in self.images.all if offer.image.manifest.arch == asked.arch]
            told.functions = [function for function in self.functions.all if function.arch == asked.arch]
        self._spawn(self._engine.send(message.reply, encode(told)), "tell a host")

    async def refresh(self) -> None:
        """Take notice of what operators have changed. Raises SilenceError."""
        await self.keys.refresh()
        if await self.images.refresh():
            self._roll.offered = [offer.image for offer in self.images.all]
            for image in self._roll.offered:
                await self._queues.ensure(image.manifest.arch, token_of(name_of(image)))
        if await self.functions.refresh():
            for function in self.functions.all:
                await self._queues.ensure(function.arch, queue_of(function.function.name))
        for arch in {host.about.arch for host in self._roll if host.about}:
            await self._queues.ensure(arch, CREATING)
