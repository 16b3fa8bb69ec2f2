"""Room for a run that another server offers: whether it fits here, and what is set aside for it
until it is here, or will not come.
"""

import contextlib

from mayfly.errors import MayflyError, NotMovableError, UnknownRunError
from mayfly.guests.job import Wanted
from mayfly.host.admission import Tenant, Ticket
from mayfly.host.plan import want_machine
from mayfly.images.store import InstalledImage
from mayfly.runs.carried import LANGUAGE
from mayfly.runs.moves import images
from mayfly.runs.moves.followed import Followed
from mayfly.runs.moves.link import Link, Machines, Place
from mayfly.runs.moves.messages import Lacks, Offer
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.snapshots import store as snapshots
from mayfly.units import MIB
from mayfly.vmm.config import NetworkConfig

ALIKE = 16 * MIB
"""By so much less of memory a program's next machine is as good as the one before."""


def beside(wanted: Wanted) -> int:
    """Bytes of memory that the machine has beside its image, which is in it."""
    manifest = wanted.image.manifest
    return max(0, wanted.machine.memory - manifest.initramfs_size - manifest.unpacked_size)


class Room:
    """Room for the run that is offered, which is `tenant`'s, if its owner is known here.

    Attributes:
        place: how the machine fits here.
        portable: the machine for a program that comes without its own.
        network: the lease of its addresses.
        image: the one that was sent for it.
        back: what follows the run here, if it comes back.
        kept: what is kept while the run is here.
    """

    def __init__(self, offer: Offer, service: Service, machines: Machines, tenant: Tenant | None) -> None:
        self.place = Place()
        self.portable: Wanted | None = None
        self.ticket: Ticket | None = None
        self.network: NetworkConfig | None = None
        self.image: InstalledImage | None = None
        self.back: Followed | None = None
        self.kept = contextlib.ExitStack()
        self._offer = offer
        self._service = service
        self._machines = machines
        self._tenant = tenant

    def give_up(self) -> None:
        """The run does not come: nothing is set aside for it any more."""
        if self.ticket is not None:
            self._service.admission.leave(self.ticket)
            self.ticket = None
        if self.network is not None:
            self._service.networks.give_back(self.network)
            self.network = None
        self.kept.close()

    async def prepare(self, link: Link) -> list[str]:
        """Why the run cannot be taken. An image that is lacking is taken if nothing else is in the
        way.

        Raises:
            MayflyError: the connection was lost, or the image cannot be taken.
        """
        service, run = self._service, self._offer.run
        self.place = await self._machines.look(run, self._offer.machine, None)
        reasons = list(self.place.misfits)
        if run.checkpoint and (reasons or self.place.lacks is not None):
            try:
                self.portable = self._want_portable()
                reasons.clear()
            except MayflyError as error:
                if reasons:
                    reasons.append(f"its program could not go on without its machine either: {error.message}")
        memory = self.portable.machine.memory if self.portable else run.memory
        cpus = self.portable.machine.cpus if self.portable else self.place.cpus
        try:
            service.check_ready()
        except MayflyError as error:
            reasons.append(error.message)
        with contextlib.suppress(UnknownRunError):
            reasons += self._there_before(service.get(run.id))
        if self._tenant is not None:
            try:
                self._tenant.check(memory, begins=False)
            except MayflyError as error:
                reasons.append(error.message)
        if not reasons:
            self.ticket = service.admission.enter_idle(memory, cpus)
            if self.ticket is None:
                reasons.append(f"there is no room for a machine of {memory >> 20} MiB now")
            elif self._tenant is not None:
                service.admission.charge(self.ticket, self._tenant, begins=False)
        if not reasons and self.portable is None and (had := run.network):
            try:
                self.network = service.networks.lease_again(had.mac, had.addresses, had.gateways)
            except MayflyError as error:
                reasons.append(error.message)
        if not reasons and self.portable is None and self.place.lacks is not None:
            folder = self.kept.enter_context(snapshots.passing())
            await link.send(Lacks(digest=self.place.lacks))
            self.image = await images.receive(link, folder, self.place.lacks, run.memory)
            self.place = await self._machines.look(run, self._offer.machine, self.image)
            reasons += self.place.misfits
        return reasons

    def _want_portable(self) -> Wanted:
        """The machine in which the program can go on without its own.

        Raises:
            UnknownLanguageError: the language for that is not served here.
            NotMovableError: the runtime in its image may be another one than the program's.
        """
        wanted = want_machine(self._service.images.find(LANGUAGE), self._service.config)
        made, offered = wanted.image.manifest.generator, self._offer.generator
        if made != offered:
            raise NotMovableError(f"the image of {LANGUAGE} there is of {made}, the program's own of {offered or 'an older one'}")
        lacking = self._offer.room - beside(wanted)
        if lacking > ALIKE:
            memory = wanted.machine.memory + lacking
            wanted = replace(wanted, machine=replace(wanted.machine, memory=memory + -memory % MIB))
        return wanted

    def _there_before(self, old: Run) -> list[str]:
        """Why the run cannot come where it was before, if it cannot come back."""
        about, away = self._offer.run, old.elsewhere
        if old.done.is_set() or away is None:
            return [f"the server has a run {old.id} already; if it has ended there, it can be deleted there"]
        if not isinstance(away, Followed) or away.move != self._offer.came:
            return [f"the run was there before, and went to {away.to}; it comes back from there alone: move it there first"]
        alike = old.owner == about.owner and old.outcome.step_names == about.step_names and old.is_interactive == about.interactive
        self.back = away if alike else None
        return [] if alike else [f"the server has another run {old.id}"]
