"""Requests that outlast their guest's machine: it is saved every so many seconds while it answers,
and when it is lost, the request goes on from the last save in another one. And requests whose
machine goes to another host in their midst, or comes from one.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mayfly.errors import GuestError, MayflyError, MoveError
from mayfly.functions.request import Arrival, Piece, Request
from mayfly.guests.function import Asking, FunctionRequest, FunctionResponse, Moment
from mayfly.guests.meanwhile import whole
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest
from mayfly.host.snippet import MAX_OF_A_SAVE
from mayfly.host.supply import Supply
from mayfly.snapshots import live
from mayfly.snapshots import store as snapshots

log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """The last save of a request: its machine's folder, which goes with `held`, the moment, and
    what had been printed until then.
    """

    folder: Path
    held: contextlib.ExitStack
    moment: Moment
    log: Sequence[Piece]


class Lasting:
    """Has a guest answer `asked` for `request` in `timeout_s`, and saves it meanwhile, unless
    `every_s` is 0. What was saved is not for another server: it goes with the request.

    Attributes:
        asking: what is asked of its present guest.
        request: whose log goes back to the save.
        alone: held by who saves the guest, or moves it.
    """

    def __init__(
        self,
        spawner: Spawner,
        supply: Supply,
        guest: Guest,
        asked: FunctionRequest,
        request: Request,
        timeout_s: float,
        every_s: float,
    ) -> None:
        self.asking = Asking(guest, asked, request, timeout_s)
        self.request = request
        self.alone = asyncio.Lock()
        self._spawner = spawner
        self._supply = supply
        self._asked = asked
        self._timeout_s = timeout_s
        self._every_s = every_s
        self._saved: Saved | None = None
        self._left = MAX_OF_A_SAVE

    async def ask(self) -> tuple[Guest, FunctionResponse]:
        """The answer, and the guest that gave it.

        Raises:
            MayflyError: as guests.function.ask; nothing is left of any guest.
        """
        try:
            try:
                if self.request.arrival is not None:
                    self.asking = await self._receive(self.request.arrival)
                response = await self._outlast()
            finally:
                await self._drop()
        except BaseException:
            await self.asking.guest.process.stop(0)  # another one than whoever asks knows, maybe
            raise
        return self.asking.guest, response

    async def _outlast(self) -> FunctionResponse:
        while True:
            try:
                return await self._answer()
            except MayflyError as error:
                if self.request.answer.cancelled():  # it went
                    raise
                self.asking = await self._revive(self.asking.guest, error)

    async def _receive(self, arrival: Arrival) -> Asking:
        """What goes on here in the place of the guest. Raises MayflyError: it does not."""
        guest = self.asking.guest
        found, moment, log = await arrival(guest)
        try:
            self._supply.note(found, self._supply.origin(guest) if found.wanted.machine.restore else None)
            asking = Asking(found, self._asked, self.request, self._timeout_s, moment)
            await found.process.resume()
        except BaseException:
            await found.process.stop(0)
            raise
        self.request.go_back(log)
        return asking

    async def _answer(self) -> FunctionResponse:
        if not self._every_s:
            return await self.asking.answer()
        saving = asyncio.create_task(self._save_often(), name=f"save request {self.request.id}")
        try:
            return await self.asking.answer()
        except MayflyError:
            if self.asking.guest.process.lost:
                async with self.alone:  # a save that needs its machine no more is whole then
                    pass
            raise
        finally:
            saving.cancel()
            await asyncio.wait([saving])

    async def _save_often(self) -> None:
        while not self.asking.over:
            await asyncio.sleep(self._every_s)
            try:
                await self.save()
            except MayflyError as error:
                log.info("request %s is not saved now: %s", self.request.id, error)

    async def save(self) -> None:
        """Save the guest, in the place of the last save.

        Raises:
            MayflyError: it cannot be saved now.
        """
        async with self.alone:
            await self._save()

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Hold the request during the block; who calls has it `alone`.

        Raises:
            GuestError: it is over, or its machine does not take what was sent to it.
        """
        asking = self.asking
        try:
            try:
                await asking.hold_flushed()
            except ValueError as error:
                raise GuestError("the request is over") from error
            yield
        finally:
            if not self.request.answer.cancelled():
                asking.go_on()

    def go(self, to: str) -> None:
        """The request, which is held, goes on at the host `to`, and is over here."""

        async def gone() -> None:
            raise MoveError(f"the request went to the host {to}")

        self.request.went()
        self.asking.hand_over(gone)

    async def _save(self) -> None:
        asking, moments = self.asking, list[tuple[Moment, Sequence[Piece]]]()

        async def at_rest() -> None:
            moments.append((await asking.at_rest(), tuple(self.request.log)))

        void = contextlib.ExitStack()
        try:
            folder = void.enter_context(snapshots.passing())
            await live.save(asking.guest, folder, still=self.still(), at_rest=at_rest)
            before, self._saved = self._saved, Saved(folder, void.pop_all(), *moments[0])
            self._left = MAX_OF_A_SAVE
            void = before.held if before else void
        finally:
            await self._remove(void)

    async def _drop(self) -> None:
        saved, self._saved = self._saved, None
        if saved is not None:
            await self._remove(saved.held)

    async def _remove(self, held: contextlib.ExitStack) -> None:
        try:
            await whole(held.close)
        except (MayflyError, OSError) as error:  # the request is none the worse
            log.warning("request %s: a save of it cannot be removed: %s", self.request.id, error)

    async def _revive(self, lost: Guest, error: MayflyError) -> Asking:
        """After `error`, the request as it was saved last, with another guest.

        Raises:
            MayflyError: `error`, as that was not the loss of the machine, or nothing is saved of
                it, or it was lost again and again.
        """
        saved, origin = self._saved, self._supply.origin(lost)
        if saved is None or not lost.process.lost or self._left <= 0:
            raise error
        self._left -= 1
        log.warning(
            "request %s to %s: its machine is lost (%s); it goes on from its last save", self.request.id, self.request.function, error
        )
        try:
            async with self._supply.stood_up(lost.wanted, saved.folder, origin) as found:
                pass
        except MayflyError as fault:
            log.warning("request %s cannot go on from what was saved: %s", self.request.id, fault)
            raise error from fault
        self.request.go_back(saved.log)
        return Asking(found, self._asked, self.request, self._timeout_s, saved.moment)
