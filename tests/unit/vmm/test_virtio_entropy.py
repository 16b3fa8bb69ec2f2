"""The entropy device with a clock and a timer of the test's."""

import pytest

from mayfly.vmm.devices.virtio.entropy import BURST, RATE, Entropy
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.registers import Register
from tests.kit.virtio_driver import ALL, PLAIN, Buffer, Driver


class Rig(Driver):
    def __init__(self, features: int = ALL) -> None:
        self.now = 100.0
        self.timers: list[float] = []
        self.given = 0
        self.entropy = Entropy(self.source, lambda: self.now, self.timers.append)
        super().__init__(self.entropy)
        self.start(features)

    def source(self, count: int) -> bytes:
        self.given += count
        return b"\xa5" * count

    def ask(self, *rooms: int) -> list[tuple[int, bytes]]:
        self.queues[0].offer([Buffer(room=room) for room in rooms])
        self.kick(0)
        return self.answers()

    def answers(self) -> list[tuple[int, bytes]]:
        return [(length, data) for _, length, data in self.queues[0].used()]


@pytest.fixture(params=[ALL, PLAIN], ids=["event-idx", "plain"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(request.param)


def test_fills_the_buffers_of_a_request(rig: Rig) -> None:
    assert rig.read(Register.DEVICE_ID) == 4
    assert rig.ask(64) == [(64, b"\xa5" * 64)]
    assert rig.ask(10, 20) == [(30, b"\xa5" * 30)]
    assert rig.interrupts == 2
    assert not rig.timers


def test_a_long_request_is_filled_up_to_the_burst(rig: Rig) -> None:
    [(length, _)] = rig.ask(1 << 20)
    assert length == BURST


def test_over_the_rate_requests_wait_for_the_timer(rig: Rig) -> None:
    rig.ask(BURST)
    assert rig.timers == [BURST / RATE]
    assert rig.ask(64) == []
    assert rig.ask(64) == []
    assert len(rig.timers) == 1
    rig.now += rig.timers[0]
    rig.entropy.resume()
    assert [length for length, _ in rig.answers()] == [64, 64]
    assert rig.ask(64) != []


def test_the_rate_holds_over_time_whatever_the_guest_asks(rig: Rig) -> None:
    for _ in range(50):
        rig.ask(100_000)
        if rig.timers:
            rig.now += rig.timers.pop()
            rig.entropy.resume()
            rig.answers()
    assert rig.given <= BURST + RATE * (rig.now - 100)


def test_a_reset_while_waiting_does_not_forge_a_second_timer(rig: Rig) -> None:
    rig.ask(BURST)
    rig.start()
    assert rig.ask(64) == []
    assert len(rig.timers) == 1
    rig.now += 1
    rig.entropy.resume()
    assert [length for length, _ in rig.answers()] == [64]


def test_a_request_without_room_comes_back_empty(rig: Rig) -> None:
    rig.queues[0].offer([Buffer(b"not to be written")])
    rig.kick(0)
    assert [length for length, _ in rig.answers()] == [0]
    assert rig.transport.misuse == {Misuse.DIRECTION: 1}
