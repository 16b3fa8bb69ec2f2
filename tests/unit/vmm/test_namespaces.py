"""Cells of namespaces where something fails: errors are foreseen, and no descriptor stays open."""

import errno
import os
import resource
import socket
from pathlib import Path

import pytest

from mayfly.vmm.sandbox import parts
from mayfly.vmm.sandbox.namespaces import Cell, Making


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_cell_that_cannot_be_joined_is_closed() -> None:
    """A best-effort machine goes on without it, as long as it lives."""
    reading, writing = os.pipe()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):  # neither is a namespace
        Cell({"net": reading, "mnt": writing}, {}).join()
    for fd in (reading, writing):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)


@pytest.mark.parametrize("lacking", ["fork", "socketpair"])
def test_a_host_without_a_process_for_it_lacks_the_part(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os if lacking == "fork" else socket, lacking, refuse)
    found = parts.look()[0]
    assert (found.name, found.finding) == ("namespaces", "none")
    assert "mnt: Resource temporarily unavailable" in found.lacking


def test_a_process_without_room_for_its_descriptors_lacks_all() -> None:
    whole = Making().finish()
    whole.close()
    if whole.lacking:
        pytest.skip(f"this host refuses namespaces: {whole.lacking}")
    before = descriptors()
    making = Making()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (making._socket.fileno() + 2, limits[1]))
    try:
        cell = making.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert cell == Cell({}, dict.fromkeys(whole.descriptors, os.strerror(errno.EMFILE)))
    assert descriptors() == before
