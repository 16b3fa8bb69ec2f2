"""The one tree of errors. Messages name what, which value, which limit; `hint` says what to do
about it.

MayflyError ├── ConfigError              a value in a configuration, a flag or a request to the VMM
is out of range
├── ProtocolError            the other end of the channel broke the protocol
├── KvmError                 a KVM ioctl failed (ioctl, errno)
│   └── KvmUnavailableError  no usable /dev/kvm on this host
├── BootError                a guest did not come up (console tail)
├── GuestError               a guest that was up ended in a way it should not (console tail)
├── CollectError             files of a guest are not there, or pass a limit
├── HostError                this host lacks something: a program, memory, disk, a permission
│   └── NetworkError         the back end of a machine's network cannot be had
├── ImageError               an image could not be built, or is not what its manifest says
│   ├── ImageNotFoundError   no image of that language or version
│   ├── RegistryError        a registry refused, failed or lied
│   └── LayerError           a layer is hostile, broken or over a limit
├── SnapshotError            a snapshot cannot be made, or not be restored here
│   └── SnapshotNotFoundError
└── RequestError             a client's request cannot be served as it stands
    ├── UnknownLanguageError
    ├── UnknownRunError
    ├── BodyTooLargeError
    └── BusyError            no room now, later perhaps (retry_after)
"""

import os


class MayflyError(Exception):
    """Root of all errors that Mayfly raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MayflyError):
    """A value is out of its range, or two values contradict each other."""


class ProtocolError(MayflyError):
    """The other end of the channel sent what the protocol forbids."""


class KvmError(MayflyError):
    """The ioctl `ioctl` failed with `errno`."""

    def __init__(self, ioctl: str, errno: int, *, hint: str = "") -> None:
        super().__init__(f"{ioctl} failed: {os.strerror(errno)} (errno {errno})", hint=hint)
        self.ioctl = ioctl
        self.errno = errno


class KvmUnavailableError(KvmError):
    """KVM cannot be used at all on this host."""


class ConsoleTailError(MayflyError):
    """Base of the errors about a guest; `console` is the end of what its kernel printed."""

    def __init__(self, message: str, *, hint: str = "", console: str = "") -> None:
        super().__init__(message, hint=hint)
        self.console = console


class BootError(ConsoleTailError):
    """The guest did not come as far as the agent's HELLO."""


class GuestError(ConsoleTailError):
    """The guest stopped, or its agent failed, in the middle of its work."""


class CollectError(MayflyError):
    """Files of a guest cannot be collected: they are not there, or pass a limit."""


class HostError(MayflyError):
    """The host lacks something that is needed."""


class NetworkError(HostError):
    """What is to connect a machine's network is not there, or not to be used."""


class ImageError(MayflyError):
    """An image could not be built, or is not what its manifest says."""


class ImageNotFoundError(ImageError):
    """There is no image for that language, version and architecture."""


class RegistryError(ImageError):
    """A registry could not be reached, refused, or sent something other than what was asked for."""


class LayerError(ImageError):
    """A layer is broken, hostile or over a limit."""


class SnapshotError(MayflyError):
    """A snapshot could not be made, is damaged, or belongs to another host, kernel, image or
    version.
    """


class SnapshotNotFoundError(SnapshotError):
    """There is no snapshot of that name."""


class RequestError(MayflyError):
    """A client's request cannot be served as it stands."""


class UnknownLanguageError(RequestError):
    """The request names a language (or version) that has no image here."""


class UnknownRunError(RequestError):
    """The request names a run that does not exist, or no longer."""


class BodyTooLargeError(RequestError):
    """The request's body, or the files in it, are over the limit."""


class BusyError(RequestError):
    """There is no room for another run now."""

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
