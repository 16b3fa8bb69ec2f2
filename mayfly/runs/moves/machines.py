"""Machines of this host as they travel: what mayfly/snapshots/moving.py does, for one server."""

import asyncio
from collections.abc import Callable

from mayfly.errors import MayflyError, SchemaError, UnknownLanguageError
from mayfly.guests.job import Wanted
from mayfly.guests.start import Guest
from mayfly.host.plan import want_machine
from mayfly.images.store import InstalledImage
from mayfly.runs.described import Description
from mayfly.runs.moves.link import Place, Read, Round, Write
from mayfly.runs.service import Service
from mayfly.schema import decode, msgspec, replace
from mayfly.snapshots import moving
from mayfly.snapshots.making import find_base
from mayfly.snapshots.store import Snapshot
from mayfly.vmm.config import NetworkConfig


class HostMachines:
    """Machines as `service` makes them; a link.Machines."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def offer(self, guest: Guest) -> bytes:
        """As link.Machines."""
        return msgspec.json.encode(await asyncio.to_thread(moving.offer, guest))

    async def look(self, run: Description, offer: bytes, image: InstalledImage | None) -> Place:
        """As link.Machines."""
        try:
            offered = decode(moving.Offer, offer)
        except SchemaError:
            return Place(misfits=("The other server is of another version of Mayfly.",))
        try:
            found = image or self._find(run)
            if found is None:
                return Place(lacks=offered.image, cpus=offered.machine.cpus)
            network = self._service.networks.disconnected() if run.network else None
            here = await asyncio.to_thread(lambda: moving.offer_of(self._wanted(run, found, offered, network)[0]))
        except MayflyError as error:
            return Place(misfits=(f"{error.message} ({error.hint})" if error.hint else error.message,))
        if image is None and here.image != offered.image:
            others = moving.misfits(offered, replace(here, image=offered.image, machine=offered.machine))
            return Place(misfits=tuple(others)) if others else Place(lacks=offered.image, cpus=offered.machine.cpus)
        return Place(misfits=tuple(moving.misfits(offered, here)), held=moving.held(offered, here), cpus=offered.machine.cpus)

    def _find(self, run: Description) -> InstalledImage | None:
        """The image of the run's language; None if it may be sent.

        Raises:
            UnknownLanguageError: the language is not served here.
        """
        served = self._service.config.languages
        try:
            return self._service.images.find(f"{run.language}@{run.version}")
        except UnknownLanguageError:
            if served and run.language not in {name.partition("@")[0] for name in served}:
                raise
            return None

    def _wanted(
        self, run: Description, image: InstalledImage, offered: moving.Offer, network: NetworkConfig | None
    ) -> tuple[Wanted, Snapshot | None]:
        """The machine as it would be made here, over the base that is here, and that."""
        wanted = want_machine(image, self._service.config, network)
        machine = replace(wanted.machine, memory=run.memory, cpus=offered.machine.cpus, channel=offered.machine.channel)
        wanted = replace(wanted, machine=machine)
        base = find_base(wanted)
        return (wanted.restored_from(base.chain, load_ws=False) if base else wanted), base

    async def send_rounds(self, guest: Guest, write: Write, *, held: int, limit_bytes_s: int, progress: Callable[[Round], None]) -> None:
        """As link.Machines."""

        def tell(one: moving.Round) -> None:
            progress(Round(number=one.number + 1, bytes=one.sent))

        await moving.send_rounds(guest, write, held=held, limit_bytes_s=limit_bytes_s or None, progress=tell)

    async def send_last(self, guest: Guest, write: Write) -> None:
        """As link.Machines."""
        await moving.send_last(guest, write)

    async def receive(
        self, run: Description, offer: bytes, read: Read, *, held: int, network: NetworkConfig | None, image: InstalledImage | None
    ) -> Guest:
        """As link.Machines."""
        image = image or self._service.images.find(f"{run.language}@{run.version}")
        wanted, base = await asyncio.to_thread(self._wanted, run, image, decode(moving.Offer, offer), network)
        guest = await moving.receive(self._service.spawner, moving.wanted_with(wanted, held), read)
        self._service.supply.note(guest, base if held else None)
        return guest
