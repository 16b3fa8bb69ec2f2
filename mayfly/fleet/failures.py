"""How the engine of a fleet fails, in words that the rest of it knows."""

import asyncio
import contextlib
from collections.abc import Iterator

import nats
from nats.js.errors import APIError

NO_ROOM = (10002, 10023, 10047, 10077)
"""The servers' codes for an account, a server and a disk that are full, and for a message that
could not be written.
"""


class NobodyError(Exception):
    """Nobody listens to the subject of a request."""


class SilenceError(Exception):
    """There was no answer in time, or no connection."""


class RefusedError(SilenceError):
    """The servers have no room to store it."""


class UnreadableError(SilenceError, ValueError):
    """What was said, or lies in a bucket, cannot be read: as good as nothing, wherever that is
    awaited.
    """


class FullError(Exception):
    """The stream holds as much as it may."""


class TooLargeError(Exception):
    """The servers take no message of that size."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Name the engine's errors as the rest of the fleet knows them, and be cancelled when asked to:
    in Python 3.11 `wait_for`, by which nats-py waits, forgets that if the answer comes just then.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except nats.errors.NoRespondersError as error:
        raise NobodyError from error
    except (TimeoutError, nats.errors.Error, OSError) as error:
        if isinstance(error, APIError) and error.err_code in NO_ROOM:
            raise RefusedError(error.description) from error
        raise SilenceError(str(error) or type(error).__name__) from error
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError
