"""What a run that is under way has of its host."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mayfly.guests.start import Guest
from mayfly.host.admission import Ticket

if TYPE_CHECKING:
    from mayfly.runs.lasting import Lasting


@dataclass(slots=True, kw_only=True)
class Work:
    """What is there for one run until its machine is gone.

    Attributes:
        held: gives back what the run takes of the host.
        place: of its machine among all; None while it has none.
        guests: its own, then copies of it; none before it has begun.
        lasting: saves it again and again; None if nobody asked for that.
        task: does it all.
    """

    held: contextlib.ExitStack
    place: Ticket | None = None
    guests: tuple[Guest, ...] = ()
    lasting: "Lasting | None" = None
    task: asyncio.Task[None] = field(init=False)
