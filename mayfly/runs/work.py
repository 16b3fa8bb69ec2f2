"""What a run begins with, and what it has of its host while it is under way."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mayfly.errors import UnprocessableError
from mayfly.guests.converse import StdinSource
from mayfly.guests.job import Wanted
from mayfly.guests.start import Guest
from mayfly.host.admission import Ticket
from mayfly.host.plan import Plan
from mayfly.host.snippet import Snippet
from mayfly.images.store import InstalledImage
from mayfly.runs.run import Run
from mayfly.runs.stdin import LiveStdin
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.store import Snapshot
from mayfly.vmm.config import Channel

if TYPE_CHECKING:
    from mayfly.runs.lasting import Lasting, Server


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


def named_in(snippet: Snippet, image: InstalledImage) -> Snapshot | None:
    """The snapshot that a snippet names, if it does.

    Raises:
        SnapshotError: there is none, or it cannot be used.
        UnprocessableError: its machine has a network, and the snippet wants none, or otherwise.
    """
    if not snippet.snapshot:
        return None
    snapshot = snapshots.named(snippet.snapshot, image)
    if (snapshot.manifest.machine.network is not None) != snippet.network:
        has = "no" if snippet.network else "a"
        hint = "leave network out" if snippet.network else 'ask for one: "network": true'
        raise UnprocessableError(f"the machine of the snapshot {snippet.snapshot} has {has} network", hint=hint)
    return snapshot


def make_run(snippet: Snippet, image: InstalledImage, plan: Plan, *, owner: str, stdin: LiveStdin | None, run_id: str) -> Run:
    """The run of a snippet, which is to be carried out as the plan has it."""
    return Run(
        language=image.manifest.language,
        version=image.manifest.version,
        mode=snippet.output,
        step_names=plan.step_names,
        owner=owner,
        cases=snippet.cases,
        stop_at_first_failure=snippet.stop_at_first_failure,
        stdin=stdin,
        has_terminal=snippet.tty is not None,
        collect=plan.collect,
        hidden=tuple(snippet.hidden_files),
        tests=plan.tests,
        run_id=run_id,
        checkpoint="" if snippet.cases else image.manifest.checkpoint,
        checkpoint_every_s=snippet.checkpoint_every_s,
    )


def make_lasting(
    server: "Server", run: Run, wanted: Wanted, held: contextlib.ExitStack, stdin: StdinSource | None = None
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
    lasting = Lasting(server, run, run.checkpoint_every_s)
    held.callback(lasting.close)
    return lasting
