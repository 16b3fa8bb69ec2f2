"""The channel over TCP, with a listener on loopback in the agent's place."""

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator

import pytest

from mayfly.vmm.channels.tcp import TcpChannel
from mayfly.vmm.eventloop import EventLoop
from tests.kit.scale import patience

DEADLINE_S = patience(10)
TOKEN = "0123456789abcdef" * 4
DATA = bytes(range(256)) * 4096


def receive(source: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer at the end."""
    data = b""
    while len(data) < size and (more := source.recv(size - len(data))):
        data += more
    return data


class Rig:
    """A channel, our end of it, and the loop that it runs in."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        self.loop = EventLoop()
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(DEADLINE_S)
        self.closed = 0
        self.failures: list[OSError] = []
        self.address = self.listener.getsockname()
        self.channel = TcpChannel(self.theirs, self.loop, TOKEN, connect=self.connect, closed=self.on_closed, failed=self.on_failed)
        self.thread = threading.Thread(target=self.loop.run)

    def connect(self, connection: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            connection.connect(self.address)

    def on_closed(self) -> None:
        self.closed += 1
        self.loop.stop()

    def on_failed(self, error: OSError) -> None:
        self.failures.append(error)
        self.loop.stop()

    def accept(self) -> socket.socket:
        """The connection, as the agent has it when it has seen the token."""
        self.channel.open()
        self.thread.start()
        connection, _ = self.listener.accept()
        connection.settimeout(DEADLINE_S)
        token = receive(connection, 64)
        assert token == TOKEN.encode()
        assert len(token) == 64
        return connection

    def join(self) -> None:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.loop.stop()
    if rig.thread.is_alive():
        rig.join()
    rig.channel.close()
    rig.loop.__exit__(None, None, None)
    for one in (rig.listener, rig.ours, rig.theirs):
        one.close()


def test_bytes_go_both_ways_behind_the_token(rig: Rig) -> None:
    with rig.accept() as agent:
        for source, target in ((rig.ours, agent), (agent, rig.ours)):
            sender = threading.Thread(target=source.sendall, args=(DATA,))
            sender.start()
            assert receive(target, len(DATA)) == DATA
            sender.join()
        rig.ours.close()
        assert agent.recv(1) == b""
        rig.join()
    assert rig.closed == 1


def test_what_the_agent_sent_before_its_end_arrives(rig: Rig) -> None:
    with rig.accept() as agent:
        agent.sendall(b"last words")
    assert receive(rig.ours, 10) == b"last words"
    assert rig.ours.recv(1) == b""
    assert not rig.closed


def test_a_refused_connection_is_a_failure(rig: Rig) -> None:
    rig.listener.close()
    rig.channel.open()
    rig.loop.run()
    assert [error.errno for error in rig.failures] == [errno.ECONNREFUSED]


def test_the_channels_end_before_there_is_a_connection(rig: Rig) -> None:
    rig.ours.close()
    rig.loop.run()
    assert rig.closed == 1
