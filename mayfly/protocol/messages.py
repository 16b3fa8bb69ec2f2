"""The messages of the channel, as agent/PROTOCOL.md has them: what each holds, and how its payload
is laid out.

Each is a dataclass whose `layout` names the wire types of its fields in their order (wire.py): the
whole codec. They are not frozen, and compare and show themselves by `Fields`: methods of their own
for so many classes would make each start slower. Paths, arguments and environment values may hold
any bytes but NUL: what is not UTF-8 travels in `str` as surrogate escapes.
"""

import dataclasses
from enum import IntEnum
from typing import ClassVar, Self

from mayfly.protocol.wire import (
    ENV,
    FLAG,
    RAW,
    STR,
    U8,
    U16,
    U32,
    U64,
    BadPayloadError,
    Cursor,
    Fields,
    bits,
    enum,
    exactly,
    list_of,
    nested,
    numbers,
    rest,
)

PROTOCOL_VERSION = 6
EARLIER_VERSIONS = (5,)
"""Of agents whose images still run: what came since is for images that ask for it."""
MAX_PAYLOAD = 65536
MAX_FILE_CHUNK = MAX_PAYLOAD - 10
"""Bytes of a file that one FILE frame of the host can carry."""
MAX_FILES_SIZE = 16 << 20
MAX_STEPS = 255
MAX_BODY = 6 << 20
"""Bytes of a function's request, and of its answer."""
MAX_BODY_CHUNK = MAX_PAYLOAD - 512
"""Bytes of them that one REQUEST or RESPONSE frame can carry besides the rest."""
MAX_CONTENT_TYPE = 255
MIN_ENTROPY, MAX_ENTROPY = 16, 512
WORK_FOLDER = "/work"


class FrameType(IntEnum):
    """First byte of a packet; below 0x80 host to agent, from 0x80 on agent to host."""

    START = 0x01
    FILE = 0x02
    BEGIN = 0x03
    STDIN = 0x04
    STDIN_EOF = 0x05
    SIGNAL = 0x06
    COLLECT = 0x07
    RESUMED = 0x08
    SHUTDOWN = 0x09
    RESIZE = 0x0A
    REQUEST = 0x0B
    MOVED = 0x0C
    HELLO = 0x81
    STAGE = 0x82
    STDOUT = 0x83
    STDERR = 0x84
    EXIT = 0x85
    DONE = 0x86
    CREDIT = 0x87
    COLLECTED = 0x88
    ERROR = 0x89
    LOADED = 0x8A
    RESPONSE = 0x8B


class Limit(IntEnum):
    """Which limit ended a step."""

    NONE = 0
    WALL = 1
    CPU = 2
    MEMORY = 3
    PROCESSES = 4
    FILE_SIZE = 5


class ErrorCode(IntEnum):
    """The first field of ERROR."""

    INCOMPLETE_ROOT = 1
    START_REFUSED = 2
    FILE_NOT_WRITTEN = 3
    COLLECT_FAILED = 4
    RESUMED_FAILED = 5
    WRONG_STATE = 6
    AGENT_FAILED = 7
    FUNCTION_BROKE_CONTRACT = 8


class ExitHow(IntEnum):
    """How a step ended; it says what `Exit.code` is: an exit status, a signal number or an
    errno.
    """

    EXITED = 0
    SIGNALED = 1
    NOT_STARTED = 2


class ResponseKind(IntEnum):
    """What a function's response is: what its handler returned, or the exception that it raised."""

    ANSWER = 0
    EXCEPTION = 1


@dataclasses.dataclass(eq=False, repr=False)
class Message(Fields):
    """The payload of a frame; its class says the frame's type."""

    type: ClassVar[FrameType]

    @classmethod
    def decode(cls, payload: bytes) -> Self | None:
        """Parse a payload to its last byte; None if it is not one of this type."""
        cursor = Cursor(payload)
        try:
            message = cls.read(cursor)
            cursor.finish()
        except BadPayloadError:
            return None
        return message


Env = tuple[tuple[str, str], ...]
_ARGV, _STEP_FLAGS = list_of(RAW), bits(4)
_STEP_LIMITS = numbers("IIQIQQ")


@dataclasses.dataclass(eq=False, repr=False)
class Step(Fields):
    """One program to run. Times in milliseconds, sizes in bytes; a limit of 0 means none.

    With `columns` and `rows` its standard input, output and error are one terminal of that size. A
    `function` is the last step: once loaded it answers requests, and `output` is a limit on each.
    The program of a `standby` stays, for the step of this name of the next run, if that may have
    its program `by_standby`.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str = WORK_FOLDER
    env: Env = ()
    wall_ms: int = 0
    cpu_ms: int = 0
    memory: int = 0
    processes: int = 0
    output: int = 0
    file_size: int = 0
    stdin: bool = False
    columns: int = 0
    rows: int = 0
    function: bool = False
    standby: bool = False
    by_standby: bool = False

    def encode(self) -> bytes:
        """The fields as bytes; all flags are in one."""
        limits = _STEP_LIMITS.write((self.wall_ms, self.cpu_ms, self.memory, self.processes, self.output, self.file_size))
        program = STR.write(self.name) + _ARGV.write(self.argv) + RAW.write(self.cwd) + ENV.write(self.env)
        flags = _STEP_FLAGS.write((self.stdin, self.function, self.standby, self.by_standby))
        return program + limits + flags + U16.write(self.columns) + U16.write(self.rows)

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read the fields from the cursor."""
        program = STR.read(cursor), _ARGV.read(cursor), RAW.read(cursor), ENV.read(cursor)
        wall_ms, cpu_ms, memory, processes, output, file_size = _STEP_LIMITS.read(cursor)
        stdin, *flags = _STEP_FLAGS.read(cursor)
        columns, rows = U16.read(cursor), U16.read(cursor)
        return cls(*program, wall_ms, cpu_ms, memory, processes, output, file_size, stdin, columns, rows, *flags)


@dataclasses.dataclass(eq=False, repr=False)
class FileEntry(Fields):
    """A file that the host is going to send: beneath /work, permission bits, size in bytes."""

    path: str
    mode: int
    size: int
    layout = (RAW, U32, U64)


_START_FLAGS = bits(2)
_STEPS, _FILES = list_of(nested(Step)), list_of(nested(FileEntry))


@dataclasses.dataclass(eq=False, repr=False)
class Start(Message):
    """Begin a run: what to execute and which files to expect.

    With `keep` the working folder that the run leaves becomes the products. With `from_products`
    the working folder begins as a copy of them.
    """

    env: Env
    steps: tuple[Step, ...]
    files: tuple[FileEntry, ...]
    keep: bool = False
    from_products: bool = False
    type = FrameType.START

    def encode(self) -> bytes:
        """The payload; both flags are in the byte at its front."""
        flags = _START_FLAGS.write((self.keep, self.from_products))
        return flags + ENV.write(self.env) + _STEPS.write(self.steps) + _FILES.write(self.files)

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read the fields from the cursor."""
        keep, from_products = _START_FLAGS.read(cursor)
        return cls(ENV.read(cursor), _STEPS.read(cursor), _FILES.read(cursor), keep, from_products)


@dataclasses.dataclass(eq=False, repr=False)
class File(Message):
    """A piece of file `index` of START's list."""

    index: int
    offset: int
    data: bytes
    type = FrameType.FILE
    layout = (U16, U64, rest())


@dataclasses.dataclass(eq=False, repr=False)
class Begin(Message):
    """All files are there: run the steps."""

    type = FrameType.BEGIN


@dataclasses.dataclass(eq=False, repr=False)
class Stdin(Message):
    """Bytes for the standard input of the step that takes it; only as many as CREDIT has
    granted.
    """

    data: bytes
    type = FrameType.STDIN
    layout = (rest(),)


@dataclasses.dataclass(eq=False, repr=False)
class StdinEof(Message):
    """Standard input is at its end."""

    type = FrameType.STDIN_EOF


@dataclasses.dataclass(eq=False, repr=False)
class Signal(Message):
    """Send a signal to every process of the running step."""

    number: int
    type = FrameType.SIGNAL
    layout = (U8,)


@dataclasses.dataclass(eq=False, repr=False)
class Collect(Message):
    """Ask for files and folders, by absolute path; with `globs` for the files whose paths match."""

    paths: tuple[str, ...]
    globs: bool = False
    type = FrameType.COLLECT
    layout = (list_of(RAW), FLAG)


@dataclasses.dataclass(eq=False, repr=False)
class Identity(Message):
    """What makes a machine another than those with the same memory: time in nanoseconds since 1970,
    16 bytes of boot id, host name (empty: both stay), words of the network (as on the kernel's
    command line; empty: nothing changes), 16 to 512 bytes of entropy.
    """

    time_ns: int
    boot_id: bytes
    hostname: str
    network: str
    entropy: bytes
    layout = (U64, exactly(16), STR, STR, rest(MIN_ENTROPY, MAX_ENTROPY))


class Resumed(Identity):
    """An identity after a restore; HELLO follows."""

    type = FrameType.RESUMED


class Moved(Identity):
    """An identity for a machine that goes on in the middle of whatever it does; nothing follows."""

    type = FrameType.MOVED


@dataclasses.dataclass(eq=False, repr=False)
class Shutdown(Message):
    """Kill what runs and restart the machine."""

    type = FrameType.SHUTDOWN


@dataclasses.dataclass(eq=False, repr=False)
class Resize(Message):
    """Give the running step's terminal another size."""

    columns: int
    rows: int
    type = FrameType.RESIZE
    layout = (U16, U16)


@dataclasses.dataclass(eq=False, repr=False)
class Request(Message):
    """A request to the function, or a piece of it: all pieces have the same fields but for `data`,
    and `size` bytes of that together.
    """

    id: int
    content_type: str
    size: int
    data: bytes
    type = FrameType.REQUEST
    layout = (U32, STR, U32, rest())


@dataclasses.dataclass(eq=False, repr=False)
class Hello(Message):
    """The agent is ready. `end_marker` is empty where it does not run as a machine's init."""

    version: int
    agent_version: str
    arch: str
    boot_us: int
    end_marker: str
    type = FrameType.HELLO
    layout = (U16, STR, STR, U64, STR)


@dataclasses.dataclass(eq=False, repr=False)
class Stage(Message):
    """A step's program starts."""

    step: int
    name: str
    type = FrameType.STAGE
    layout = (U8, STR)


@dataclasses.dataclass(eq=False, repr=False)
class Stdout(Message):
    """What the step wrote to its standard output."""

    data: bytes
    type = FrameType.STDOUT
    layout = (rest(),)


@dataclasses.dataclass(eq=False, repr=False)
class Stderr(Message):
    """What the step wrote to its standard error."""

    data: bytes
    type = FrameType.STDERR
    layout = (rest(),)


@dataclasses.dataclass(eq=False, repr=False)
class Exit(Message):
    """A step is over. `cut` tells of stdout, then of stderr, whether output was dropped; times in
    microseconds, memory in bytes.
    """

    step: int
    how: ExitHow
    code: int
    limit: Limit
    wall_us: int
    cpu_us: int
    peak_memory: int
    cut: tuple[bool, bool]
    type = FrameType.EXIT
    layout = (U8, enum(U8, ExitHow), U32, enum(U8, Limit), U64, U64, U64, bits(2))


@dataclasses.dataclass(eq=False, repr=False)
class Done(Message):
    """The run is over."""

    type = FrameType.DONE


@dataclasses.dataclass(eq=False, repr=False)
class Credit(Message):
    """The host may send so many bytes of STDIN beyond all that it was allowed before."""

    count: int
    type = FrameType.CREDIT
    layout = (U32,)


_COLLECTED_FLAGS = bits(3)


@dataclasses.dataclass(eq=False, repr=False)
class Collected(Message):
    """A piece of COLLECT's answer.

    `head` is there where a file or folder begins (its mode has the type bits), `ends` is true where
    it ends, `last` at the end of all.
    """

    index: int
    head: FileEntry | None
    ends: bool
    last: bool
    data: bytes
    type = FrameType.COLLECTED

    def encode(self) -> bytes:
        """The payload; the head is there only if bit 0 of the flags says so."""
        flags = _COLLECTED_FLAGS.write((self.head is not None, self.ends, self.last))
        return U16.write(self.index) + flags + (self.head.encode() if self.head else b"") + rest().write(self.data)

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read the fields from the cursor."""
        index = U16.read(cursor)
        headed, ends, last = _COLLECTED_FLAGS.read(cursor)
        return cls(index, FileEntry.read(cursor) if headed else None, ends, last, cursor.rest())


@dataclasses.dataclass(eq=False, repr=False)
class Error(Message):
    """The agent could not do something; `code` says what."""

    code: ErrorCode
    message: str
    type = FrameType.ERROR
    layout = (enum(U16, ErrorCode), STR)


@dataclasses.dataclass(eq=False, repr=False)
class Loaded(Message):
    """The function takes requests now."""

    type = FrameType.LOADED


@dataclasses.dataclass(eq=False, repr=False)
class Response(Message):
    """The function's answer to request `id`, or a piece of it, as of `Request`. `guest_us` are the
    microseconds that it took, as the guest says.
    """

    id: int
    kind: ResponseKind
    guest_us: int
    content_type: str
    size: int
    data: bytes
    type = FrameType.RESPONSE
    layout = (U32, enum(U8, ResponseKind), U64, STR, U32, rest())


FROM_HOST: tuple[type[Message], ...] = (Start, File, Begin, Stdin, StdinEof, Signal, Collect, Resumed, Shutdown, Resize, Request, Moved)
FROM_AGENT: tuple[type[Message], ...] = (Hello, Stage, Stdout, Stderr, Exit, Done, Credit, Collected, Error, Loaded, Response)
