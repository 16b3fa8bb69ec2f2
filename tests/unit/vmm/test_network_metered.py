"""Limits of a machine's network, over a back end of two lists and a clock that the test moves."""

import pytest

from mayfly.schema import replace
from mayfly.vmm.config import NetworkBackend, NetworkConfig
from mayfly.vmm.devices.virtio.packet import HEADER, MAX_PACKET
from mayfly.vmm.kvm.chains import Batch
from mayfly.vmm.network.metered import DROPPED_AT_ONCE, LEAST_BURST, Metered
from tests.kit.net_kit import MemoryBackend

FRAME = 1000


class Line:
    """A limited back end."""

    def __init__(self, **limits: int) -> None:
        network = replace(
            NetworkConfig(backend=NetworkBackend.PASST, mac="02:00:00:00:00:05", addresses=("10.87.0.2/16",), gateways=("10.87.0.1",)),
            **limits,
        )
        assert network.limited == any(limits.values())
        assert not network.disconnected().limited
        self.now = 0.0
        self.behind = MemoryBackend()
        self.metered = Metered(self.behind, network, lambda: self.now)

    def send(self, size: int = FRAME) -> bool:
        before = len(self.behind.sent)
        self.metered.send(Batch(bytearray(HEADER.size + size)), 0)
        return len(self.behind.sent) > before

    def receive(self, size: int = FRAME) -> bool:
        self.behind.waiting.append(bytes(HEADER.size + size))
        return self.metered.receive(Batch(bytearray(MAX_PACKET))) == HEADER.size + size


def test_a_budget_is_of_both_directions_and_never_comes_back() -> None:
    line = Line(budget=3 * FRAME)
    assert [line.send(), line.receive(), line.send(), line.send(), line.receive()] == [True, True, True, False, False]
    line.now = 1e9
    assert not line.send()
    assert not line.behind.waiting  # what is lost does not wait


def test_what_is_too_large_for_the_rest_of_a_budget_leaves_the_rest() -> None:
    line = Line(budget=3 * FRAME)
    assert [line.send(4 * FRAME), line.send(2 * FRAME), line.receive(2 * FRAME), line.receive()] == [False, True, False, True]


def test_packets_have_a_rate_in_each_direction() -> None:
    line = Line(packets=50)
    assert [line.send() for _ in range(6)] == [True] * 5 + [False]
    assert [line.receive() for _ in range(6)] == [True] * 5 + [False]
    line.now = 0.02
    assert [line.send(), line.send()] == [True, False]
    line.now = 9.0  # no more than a tenth of a second's are held
    assert [line.receive() for _ in range(6)] == [True] * 5 + [False]


def test_bytes_have_a_rate_within_which_two_large_packets_are_sent_at_once() -> None:
    line = Line(rate=MAX_PACKET)
    size = LEAST_BURST // 2
    assert [line.send(size), line.send(size), line.send(1)] == [True, True, False]
    line.now = 0.5
    assert [line.send(MAX_PACKET // 2), line.send(1)] == [True, False]


def test_a_flood_that_is_dropped_leaves_others_their_turn() -> None:
    line = Line(packets=1)
    assert line.receive()
    line.behind.waiting.extend(bytes(HEADER.size + FRAME) for _ in range(2 * DROPPED_AT_ONCE))
    assert line.metered.receive(Batch(bytearray(MAX_PACKET))) == 0
    assert len(line.behind.waiting) == DROPPED_AT_ONCE


@pytest.mark.parametrize("limits", [{"budget": FRAME}, {"rate": FRAME}, {"packets": 1}])
def test_the_device_sees_what_the_back_end_can(limits: dict[str, int]) -> None:
    line = Line(**limits)
    assert line.metered.offloads == MemoryBackend.offloads
    line.metered.set_offloads(7)
    assert line.behind.negotiated == 7
    line.behind.room = 0
    assert not line.metered.make_room()
