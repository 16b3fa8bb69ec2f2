"""A run as another host tells of it: the same Run, made of what comes over the fleet. No I/O."""

import msgspec

from mayfly.errors import MayflyError
from mayfly.fleet.failures import UnreadableError
from mayfly.fleet.message import Begun, Ending, FileLeft, Head, Tail, Told, decode, encode
from mayfly.fleet.typed import KeptStdin
from mayfly.fleet.wire import WireEvent, error_of, from_event, place, to_event, wire
from mayfly.guests.outcome import Verdict
from mayfly.host.snippet import Case
from mayfly.protocol.conversation import Failed
from mayfly.runs.files import Files, Left
from mayfly.runs.record import START, Attempt, Position, Reader
from mayfly.runs.result import RunState
from mayfly.runs.run import Run


class Stored(msgspec.Struct, kw_only=True):
    """A run that is over, as the fleet keeps it."""

    head: Head
    events: list[WireEvent]
    ending: Ending
    about: bytes = b""


def head_of(run: Run, *, interactive: bool, stop_at_first_failure: bool) -> Head:
    """What shows the run before it has begun."""
    return Head(
        id=run.id,
        language=run.language,
        version=run.version,
        mode=run.mode,
        step_names=run.outcome.step_names,
        owner=run.owner,
        cases=tuple(case.name for case in run.cases.all) if run.cases else (),
        stop_at_first_failure=stop_at_first_failure,
        interactive=interactive,
        terminal=run.has_terminal,
    )


def make_run(head: Head, *, is_over: bool = False) -> Run:
    """The run, before it has begun."""
    return Run(
        language=head.language,
        version=head.version,
        mode=head.mode,
        step_names=tuple(head.step_names),
        owner=head.owner,
        cases=[Case(name=name) for name in head.cases],
        stop_at_first_failure=head.stop_at_first_failure,
        stdin=KeptStdin() if head.interactive and not is_over else None,
        has_terminal=head.terminal,
        run_id=head.id,
    )


def ending_of(run: Run, host: str, error: MayflyError | None = None) -> Ending:
    """How a run ended, or that it ends with `error`."""
    files = run.files
    return Ending(
        error=wire(error or run.outcome.error),
        start=run.start,
        phases=run.phases,
        exits=dict(run.exits),
        parallel=run.cases.parallel if run.cases else 0,
        files=None if files is None else [FileLeft(name, left.mode, left.data) for name, left in files.by_name.items()],
        files_error=wire(files.error) if files else None,
        host=host,
    )


def conclude(run: Run, ending: Ending) -> None:
    """End the run so, unless it has ended."""
    if run.done.is_set():
        return
    run.start, run.phases, run.exits = ending.start, dict(ending.phases), ending.exits
    if run.cases is not None:
        run.cases.parallel = ending.parallel
    if ending.files is not None:
        run.files = Files()
        run.files.by_name = {left.name: Left(left.mode, left.data) for left in ending.files}
        run.files.error = error_of(ending.files_error)
    error = error_of(ending.error)
    if error is None:
        run.finish()
    else:
        run.fail(error)


def store(head: Head, run: Run, ending: Ending) -> bytes:
    """A run that ends so, as the fleet keeps it: of several attempts the last one."""
    events: list[WireEvent] = []
    reader = Reader(run.record)
    while (event := reader.take()) is not None:
        if isinstance(event, Attempt):
            events.clear()
        elif (sent := from_event(event)) is not None:
            events.append(sent)
    return encode(Stored(head=head, events=events, ending=ending, about=run.about))


def restore(data: bytes) -> Run:
    """The run that was stored. Raises UnreadableError."""
    stored = decode(data, type=Stored)
    run = make_run(stored.head, is_over=True)
    run.about = stored.about
    for event in stored.events:
        run.replay(to_event(event))
    conclude(run, stored.ending)
    return run


class Mirror:
    """Takes what hosts tell of one run. The record grows as the host's does, span for span, so a
    position in the one is one in the other.

    Attributes:
        host, ack: who has it, and where its work is given back; empty until somebody has.
        delivered: how often it was given out by then, 0 if it was handed over directly. What comes
            of an earlier time counts for nothing.
        ending: how it ended on that host, once all of that is here.
        unreadable: why what that host says cannot be taken; nothing more of it is then.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.host = ""
        self.ack = ""
        self.delivered = -1
        self.ending: Ending | None = None
        self.unreadable = ""
        self._base = 0  # spans of earlier attempts
        self._attempts = 0
        self._tail = bytearray()

    @property
    def attempts(self) -> int:
        """How many hosts have begun the run, as far as is known here."""
        return self._attempts

    @property
    def position(self) -> Position:
        """What is here, as the host counts it."""
        span, offset = self.run.record.end
        return Position(span - self._base, offset) if span >= self._base else START

    @property
    def tail(self) -> int:
        """Bytes of the Ending that are here."""
        return len(self._tail)

    def begun(self, host: str, message: Begun) -> bool:
        """A host has begun, or goes on after the work was given out to it once more. True: it has
        begun anew.
        """
        if message.delivered <= self.delivered or self.run.done.is_set():
            return False
        goes_on = message.goes_on and host == self.host
        if not goes_on:
            self._attempts += 1
            if self._attempts > 1:
                self.run.restart(Attempt(self._attempts, f"{self.host} is gone, or gave it back"))
                self._base = self.run.record.end.span + 1
            self._forget_end()
            self.run.state = RunState.BOOTING
        self.host, self.ack, self.delivered = host, message.ack, message.delivered
        return not goes_on

    def moved(self, host: str, message: Begun) -> bool:
        """A host says that the run has moved there: whether that is so. The record goes on."""
        if not message.moved_from or message.moved_from != self.host or host == self.host:
            return False
        if message.delivered != self.delivered or self.run.done.is_set():
            return False
        self.host, self.ack = host, message.ack or self.ack
        self._forget_end()
        return True

    def _forget_end(self) -> None:
        self.ending, self.unreadable = None, ""
        self._tail.clear()

    def catch_up(self, stored: Run) -> None:
        """Take what is lacking of the record from the run as the fleet keeps it."""
        if not stored.record.has(self.position):  # of another attempt than what is here
            self._attempts += 1
            self.run.restart(Attempt(self._attempts, "another host has done it"))
            self._base = self.run.record.end.span + 1
        reader = Reader(stored.record, after=self.position)
        while (event := reader.take()) is not None and not isinstance(event, Failed | Verdict):
            self.run.replay(event)

    def belongs(self, host: str, delivered: int) -> bool:
        """Whether a message is from who has the run now."""
        return host == self.host and delivered == self.delivered and not self.run.done.is_set()

    def told(self, message: Told) -> bool:
        """Take events. False: something before them is lacking."""
        if self.unreadable:
            return True
        if message.after != place(self.position):
            return False
        try:
            events = [to_event(event) for event in message.events]
        except UnreadableError as error:
            self.unreadable = str(error)
            return True
        for event in events:
            self.run.replay(event)
        if message.state is not RunState.DONE:  # it is when its Ending is here
            self.run.state = message.state
        return True

    def take_tail(self, message: Tail) -> bool:
        """Take a piece of the Ending. False: something before it is lacking."""
        if self.unreadable:
            return True
        if message.after != place(self.position) or message.offset > len(self._tail):
            return False
        if message.offset == len(self._tail):
            self._tail += message.data
        try:
            if len(self._tail) > message.size:
                raise UnreadableError(f"the end of {message.size} bytes has {len(self._tail)}")
            if len(self._tail) == message.size and self.ending is None:
                self.ending = decode(self._tail, type=Ending)
        except UnreadableError as error:
            self.unreadable = str(error)
        return True
