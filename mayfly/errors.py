"""The one tree of errors. Messages name what, which value, which limit; `hint` says what to do.

MayflyError
├── ConfigError              a value in a configuration, flag or request to the VMM is out of range
├── KvmError                 a KVM ioctl failed (ioctl, errno)
│   └── KvmUnavailableError  no usable /dev/kvm on this host
├── ConsoleTailError         about a guest, with the end of its console
│   ├── BootError            it did not come up
│   └── GuestError           it was up, and ended in a way it should not
│       └── FunctionGuestError    in the middle of a request to its function (log)
│           ├── FunctionCrashedError  the program ended, or broke its contract
│           └── FunctionTimeoutError  it did not answer in its time
├── CollectError             files of a guest are not there, or pass a limit
├── SchemaError              decoded data does not fit its type
│   └── MalformedError       the text is not JSON at all
├── EncodeError              a value does not fit the channel's protocol
│   └── OversizeError        it is too long, or there are too many
├── HostError                this host lacks something: a program, memory, disk, a permission
│   ├── NetworkError         the back end of a machine's network cannot be had
│   ├── ZygoteLostError      the zygote is gone, and all its machines with it
│   ├── ServerLostError      no Mayfly server answers at an address
│   └── FleetError           the servers of a fleet cannot be reached, or cannot store anything
├── ImageError               an image could not be built, or is not what its manifest says
│   ├── ImageNotFoundError   no image of that language or version
│   ├── RegistryError        a registry refused, failed or lied
│   └── LayerError           a layer is hostile, broken or over a limit
├── SnapshotError            a snapshot cannot be made, or not be restored here
│   └── SnapshotNotFoundError
├── StoppingError            the server is stopping and takes no more runs
├── MoveError                a run could not be moved, or what became of it there is not known
└── RequestError             a client's request cannot be served as it stands
    ├── UnknownLanguageError
    ├── UnknownRunError
    ├── UnknownFunctionError
    ├── UnknownRequestError  no such request to a function, or it is no longer kept
    ├── FunctionFailedError  a function could not be built or loaded (output)
    ├── UnauthorizedError    no valid API key came with it
    ├── ForbiddenError       an API key may not do this
    ├── RunEndedError        the run is over, or its machine gone
    ├── NotMovableError      the run cannot be moved as it stands, or there is no place for it
    ├── NotCheckpointableError  the run's program has no checkpoint
    ├── NotRunningError      no program of the run is running now
    ├── NotInteractiveError  the run's standard input, or its terminal, is not open to clients
    ├── StdinTakenError      somebody else writes to the run's standard input
    ├── StdinEndedError      the run's standard input has been ended
    ├── BodyTooLargeError
    ├── MediaTypeError       the body is of a type that is not taken
    ├── UnprocessableError   well-formed, but a value in it cannot be used
    │   └── KeyReusedError   its Idempotency-Key came with another request before
    └── BusyError            no room now, later perhaps (retry_after_s)
        ├── KeyLimitError    a limit of the API key's is reached
        ├── QueueFullError   as many requests wait for a function as may
        └── ResourceExhaustedError  a request waited in vain (resource: memory, concurrency …)

Each class has a stable `code` of its own, which stands for it on every wire.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class MayflyError(Exception):
    """Root of all errors that Mayfly raises on purpose.

    Attributes:
        code: stands for the class on a wire.
        details: attributes besides `message` and `hint` that go over a wire, with their types.
    """

    code: ClassVar[str] = "internal"
    details: ClassVar[Mapping[str, type]] = {}

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MayflyError):
    """A value is out of its range, or two values contradict each other."""

    code = "bad_configuration"


class KvmError(MayflyError):
    """The ioctl `ioctl` failed with `errno`."""

    code = "kvm_failed"
    details: ClassVar[Mapping[str, type]] = {"ioctl": str, "errno": int}

    def __init__(self, ioctl: str, errno: int, *, hint: str = "") -> None:
        super().__init__(f"{ioctl} failed: {os.strerror(errno)} (errno {errno})", hint=hint)
        self.ioctl = ioctl
        self.errno = errno


class KvmUnavailableError(KvmError):
    """KVM cannot be used at all on this host."""

    code = "kvm_unavailable"


class ConsoleTailError(MayflyError):
    """Base of the errors about a guest; `console` is the end of what its kernel printed."""

    code = "machine_failed"
    details: ClassVar[Mapping[str, type]] = {"console": str}

    def __init__(self, message: str, *, hint: str = "", console: str = "") -> None:
        super().__init__(message, hint=hint)
        self.console = console


class BootError(ConsoleTailError):
    """The guest did not come as far as the agent's HELLO."""

    code = "boot_failed"


class GuestError(ConsoleTailError):
    """The guest stopped, or its agent failed, in the middle of its work."""

    code = "guest_failed"


class FunctionGuestError(GuestError):
    """Base of the errors about a request that a function's guest did not survive; `log` is the end
    of what the function printed.
    """

    code = "function_guest_failed"
    details: ClassVar[Mapping[str, type]] = {"console": str, "log": str}

    def __init__(self, message: str, *, hint: str = "", console: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint, console=console)
        self.log = log


class FunctionCrashedError(FunctionGuestError):
    """The function's program ended in the middle of a request, or broke the contract."""

    code = "function_crashed"


class FunctionTimeoutError(FunctionGuestError):
    """The function did not answer in its time."""

    code = "function_timeout"


class CollectError(MayflyError):
    """Files of a guest cannot be collected: they are not there, or pass a limit."""

    code = "collect_failed"


class SchemaError(MayflyError):
    """A value does not fit its type. The message names its path, the value and what is allowed."""

    code = "schema_violated"


class MalformedError(SchemaError):
    """The text is not JSON at all."""

    code = "malformed"


class EncodeError(MayflyError):
    """A value does not fit the channel's protocol (agent/PROTOCOL.md)."""

    code = "not_encodable"


class OversizeError(EncodeError):
    """A value is too long for the channel's protocol, or there are too many of them."""

    code = "oversize"


class HostError(MayflyError):
    """The host lacks something that is needed."""

    code = "host_failed"


class NetworkError(HostError):
    """What is to connect a machine's network is not there, or not to be used."""

    code = "network_failed"


class ZygoteLostError(HostError):
    """The zygote is gone, and all its machines with it."""

    code = "zygote_lost"


class ServerLostError(HostError):
    """No Mayfly server answers at an address, or it went away."""

    code = "server_lost"


class FleetError(HostError):
    """The servers of a fleet cannot be reached, refuse, or cannot store anything now."""

    code = "fleet_failed"


class ImageError(MayflyError):
    """An image could not be built, or is not what its manifest says."""

    code = "image_broken"


class ImageNotFoundError(ImageError):
    """There is no image for that language, version and architecture."""

    code = "image_not_found"


class RegistryError(ImageError):
    """A registry could not be reached, refused, or sent something other than what was asked for."""

    code = "registry_failed"


class LayerError(ImageError):
    """A layer is broken, hostile or over a limit."""

    code = "layer_broken"


class SnapshotError(MayflyError):
    """A snapshot could not be made, is damaged, or belongs to another host, kernel, image or
    version.
    """

    code = "snapshot_failed"


class SnapshotNotFoundError(SnapshotError):
    """There is no snapshot of that name."""

    code = "snapshot_not_found"


class StoppingError(MayflyError):
    """The server is stopping and takes no more runs."""

    code = "stopping"


class MoveError(MayflyError):
    """A run could not be moved to another server; the message says where it goes on, if it does."""

    code = "move_failed"


class RequestError(MayflyError):
    """A client's request cannot be served as it stands."""

    code = "bad_request"


class UnknownLanguageError(RequestError):
    """The request names a language (or version) that has no image here."""

    code = "unknown_language"


class UnknownRunError(RequestError):
    """The request names a run that does not exist, or no longer."""

    code = "unknown_run"


class UnknownFunctionError(RequestError):
    """The request names a function that does not exist."""

    code = "unknown_function"


class UnknownRequestError(RequestError):
    """There is no such request to a function, or it is no longer kept."""

    code = "unknown_request"


class FunctionFailedError(RequestError):
    """A function could not be built or loaded; `output` is the end of what its compiler or its
    program printed.
    """

    code = "function_failed"
    details: ClassVar[Mapping[str, type]] = {"output": str}

    def __init__(self, message: str, *, hint: str = "", output: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


class RunEndedError(RequestError):
    """The run is over, or its machine gone: it ended, a client ended it, or the server stops."""

    code = "run_ended"


class NotCheckpointableError(RequestError):
    """The run's program cannot be stopped and written to a file."""

    code = "not_checkpointable"


class NotMovableError(RequestError):
    """A run cannot be moved as it stands, or does not fit where it was to go."""

    code = "not_movable"


class NotForkableError(RequestError):
    """No clones can be made of a run as it stands."""

    code = "not_forkable"


class UnauthorizedError(RequestError):
    """The request came without a valid API key through a door that wants one."""

    code = "unauthorized"


class ForbiddenError(RequestError):
    """What the request asks for is not for API keys."""

    code = "forbidden"


class NotRunningError(RequestError):
    """No program of the run is running now: its machine is still being made, or a step has just
    ended.
    """

    code = "not_running"


class NotInteractiveError(RequestError):
    """The run was not started with what the request needs: an open standard input, a terminal."""

    code = "run_not_interactive"


class StdinTakenError(RequestError):
    """Somebody else writes to the run's standard input."""

    code = "stdin_taken"


class StdinEndedError(RequestError):
    """The run's standard input has been ended."""

    code = "stdin_ended"


class MediaTypeError(RequestError):
    """The body is of a type that is not taken."""

    code = "unsupported_media_type"


class UnprocessableError(RequestError):
    """The request is well-formed, but a value in it cannot be used."""

    code = "invalid_value"


class KeyReusedError(UnprocessableError):
    """The request's Idempotency-Key came with another request before."""

    code = "idempotency_key_reused"


class BodyTooLargeError(RequestError):
    """The request's body, or the files in it, are over the limit."""

    code = "too_large"


class BusyError(RequestError):
    """There is no room for another run now."""

    code = "busy"
    details: ClassVar[Mapping[str, type]] = {"retry_after_s": int}

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class KeyLimitError(BusyError):
    """The API key has reached a limit of its own: rate, concurrency or memory."""

    code = "key_limit"


class QueueFullError(BusyError):
    """As many requests wait for the function as may."""

    code = "queue_full"


class ResourceExhaustedError(BusyError):
    """A request to a function waited as long as it may for a guest. `resource` is what was lacking:
    `memory`, `concurrency` (all guests that the function may have are in use) or `networks`.
    """

    code = "resource_exhausted"
    details: ClassVar[Mapping[str, type]] = {"retry_after_s": int, "resource": str}

    def __init__(self, message: str, *, resource: str, hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.resource = resource


def kinds(root: type[MayflyError] = MayflyError) -> Iterator[type[MayflyError]]:
    """Every class of the tree."""
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


def to_wire(error: MayflyError) -> dict[str, Any]:
    """The error as plain data, for `from_wire` at the other end."""
    return {"code": error.code, "message": error.message, "hint": error.hint} | {name: getattr(error, name) for name in error.details}


def from_wire(fields: Mapping[str, Any]) -> MayflyError:
    """The error that `to_wire` described: an object of the same class.

    Raises:
        ValueError: there is no such class, or its fields are others.
    """
    kind = next((kind for kind in kinds() if kind.code == fields.get("code")), None)
    if kind is None:
        raise ValueError(f"no error has the code {str(fields.get('code'))[:80]!r}")
    types = {"code": str, "message": str, "hint": str, **kind.details}
    if fields.keys() != types.keys() or any(type(fields[name]) is not wanted for name, wanted in types.items()):
        raise ValueError(f"an error {kind.code} has the fields {', '.join(types)} of other types")
    error = kind.__new__(kind, fields["message"])
    for name in types.keys() - {"code"}:
        setattr(error, name, fields[name])
    return error
