"""What a run that is under way has of its host."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mayfly.errors import UnprocessableError
from mayfly.guests.converse import StdinSource
from mayfly.guests.job import Wanted
from mayfly.guests.start import Guest
from mayfly.host.admission import Ticket
from mayfly.runs.run import Run
from mayfly.vmm.config import Channel

if TYPE_CHECKING:
    from mayfly.runs.lasting import Lasting
    from mayfly.runs.service import Service


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


def make_lasting(
    service: "Service", run: Run, wanted: Wanted, held: contextlib.ExitStack, stdin: StdinSource | None = None
) -> "Lasting | None":
    """Have a run outlast its machine, as long as `held`, if that is asked for.

    Raises:
        UnprocessableError: it cannot.
    """
    if not run.checkpoint_every_s:
        return None
    from mayfly.runs.lasting import Lasting  # only here: most runs need nothing of it

    if wanted.machine.channel is Channel.TCP or stdin is not None:
        what = "standard input that belongs to a client" if stdin is not None else "a channel that is a TCP connection"
        raise UnprocessableError(f"checkpoint_every_s is not for a run with {what}", hint="leave one of them out")
    lasting = Lasting(service, run, run.checkpoint_every_s)
    held.callback(lasting.close)
    return lasting
