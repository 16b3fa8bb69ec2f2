"""The one table from exception classes to what a client sees: HTTP status and a stable code."""

from typing import Any

from mayfly import errors


class RunEndedError(errors.RequestError):
    """A client, or the server's stop, ended the run before its time."""

    code = "run_ended"


class UnprocessableError(errors.RequestError):
    """The request is well-formed, but a value in it cannot be used."""

    code = "invalid_value"


class MediaTypeError(errors.RequestError):
    """The body is of a type that is not taken."""

    code = "unsupported_media_type"


class StoppingError(errors.MayflyError):
    """The server is stopping and takes no more runs."""

    code = "stopping"


TABLE: tuple[tuple[type[errors.MayflyError], int, str], ...] = (
    (errors.UnknownLanguageError, 404, "unknown_language"),
    (errors.UnknownRunError, 404, "unknown_run"),
    (errors.BodyTooLargeError, 413, "too_large"),
    (errors.BusyError, 429, "busy"),
    (MediaTypeError, 415, "unsupported_media_type"),
    (UnprocessableError, 422, "invalid_value"),
    (RunEndedError, 410, "run_ended"),
    (errors.RequestError, 400, "bad_request"),
    (StoppingError, 503, "stopping"),
    (errors.ImageError, 503, "image_broken"),
    (errors.KvmUnavailableError, 503, "kvm_unavailable"),
    (errors.KvmError, 503, "kvm_failed"),
    (errors.BootError, 503, "boot_failed"),
    (errors.GuestError, 503, "guest_failed"),
    (errors.HostError, 503, "host_failed"),
    (errors.ConfigError, 503, "bad_configuration"),
    (errors.MayflyError, 500, "internal"),
)
"""First match wins. From the image errors on they are the host's: as an answer they mean that it
can serve nobody, and a run that has begun carries them in its result instead, so that no snippet
causes a 5xx.
"""


def lookup(error: Exception) -> tuple[int, str]:
    """Status and code of an error."""
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            return status, code
    return 500, "internal"


def as_json(error: Exception) -> dict[str, Any]:
    """The object that stands behind `error` in answers, results and events. A boot's or guest's
    error has the console's tail too.
    """
    fields = {"code": lookup(error)[1], "message": str(error) or type(error).__name__, "hint": getattr(error, "hint", "")}
    console = getattr(error, "console", "")
    return {**fields, "console": console} if console else fields
