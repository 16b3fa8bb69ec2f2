"""Bytes to and from lists of guest buffers. No loop over bytes."""

from collections.abc import Iterable


def scatter(data: bytes | bytearray | memoryview, views: Iterable[memoryview]) -> int:
    """Copy `data` into `views`, one after another; how many bytes found room."""
    source, done = memoryview(data), 0
    for view in views:
        part = source[done : done + len(view)]
        view[: len(part)] = part
        done += len(part)
        if done == len(source):
            break
    return done


def copy_start(views: list[memoryview], count: int) -> list[bytearray | memoryview]:
    """A copy of the first `count` bytes of `views` (or of all), then views of the others."""
    start = bytearray()
    for index, view in enumerate(views):
        missing = count - len(start)
        if missing < len(view):
            return [start + view[:missing], view[missing:], *views[index + 1 :]]
        start += view
    return [start]


def advance(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `views` behind their first `count` bytes."""
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[index + 1 :]]
        count -= len(view)
    return []
