"""The 16550: registers as Linux's driver uses them, interrupts, and no byte lost in either
direction.
"""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.vmm.devices.serial import (
    CTS_DOWN,
    DATA,
    IER,
    IER_MODEM_STATUS,
    IER_RECEIVED,
    IER_TRANSMITTER_EMPTY,
    IIR_FCR,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_TRANSMITTER_EMPTY,
    LCR,
    LSR,
    LSR_DATA_READY,
    LSR_HOLDING_EMPTY,
    MCR,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT2,
    MCR_RTS,
    MSR,
    MSR_CARRIER,
    MSR_CTS,
    MSR_DELTA_CTS,
    RECEIVE_LIMIT,
    SCR,
    TRANSMIT_LIMIT,
    Serial,
)
from mayfly.vmm.snapshot.state import Saved, raw

READY = MCR_DTR | MCR_RTS | MCR_OUT2


class Line:
    """A UART and what it called."""

    def __init__(self, *, modem_control: int = READY) -> None:
        self.interrupts = self.outputs = self.rooms = 0
        self.uart = Serial(self._count("interrupts"), self._count("outputs"), self._count("rooms"))
        self.write(MCR, modem_control)
        self.rooms = 0

    def _count(self, name: str) -> Callable[[], None]:
        return lambda: setattr(self, name, getattr(self, name) + 1)

    def read(self, register: int) -> int:
        return self.uart.read(register, 1)

    def write(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def cause(self) -> int:
        return self.read(IIR_FCR) & 0x0F

    def drain(self) -> bytes:
        data = bytearray()
        while self.read(LSR) & LSR_DATA_READY:
            data.append(self.read(DATA))
        return bytes(data)


def test_linux_finds_a_16550a() -> None:
    line = Line(modem_control=0)
    line.write(IER, 0x0F)
    assert line.read(IER) == 0x0F
    line.write(IER, 0)
    line.write(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS)
    assert line.read(MSR) & 0xF0 == MSR_CARRIER | MSR_CTS
    line.write(MCR, 0)
    line.write(IIR_FCR, 1)
    assert line.read(IIR_FCR) >> 6 == 3
    line.write(SCR, 0xA5)
    assert line.read(SCR) == 0xA5


def test_the_divisor_hides_data_and_ier() -> None:
    line = Line()
    line.write(LCR, 0x83)
    line.write(DATA, 12)
    line.write(IER, 1)
    assert (line.read(DATA), line.read(IER)) == (12, 1)
    line.write(LCR, 0x03)
    assert line.read(IER) == 0
    assert line.uart.take() == b""


def test_input_raises_the_line_once_and_lowers_it_when_read() -> None:
    line = Line()
    line.write(IER, IER_RECEIVED)
    assert line.cause() == IIR_NONE
    line.uart.receive(b"ab")
    assert (line.interrupts, line.cause()) == (1, IIR_RECEIVED)
    assert line.drain() == b"ab"
    assert line.cause() == IIR_NONE
    line.uart.receive(b"c")
    assert line.interrupts == 2


def test_a_copy_raises_an_interrupt_again_that_may_not_have_come() -> None:
    line = Line()
    line.write(IER, IER_RECEIVED)
    for interrupts in (0, 1):
        copy = Line()
        copy.uart.restore(Saved("uart1", raw(line.uart.save())))
        assert copy.interrupts == interrupts
        line.uart.receive(b"x")


def test_no_interrupt_leaves_without_out2() -> None:
    line = Line(modem_control=MCR_RTS)
    line.write(IER, IER_RECEIVED)
    line.uart.receive(b"x")
    assert line.interrupts == 0
    line.write(MCR, READY)
    assert line.interrupts == 1


def test_an_empty_transmitter_interrupts_when_enabled_and_after_each_byte() -> None:
    line = Line()
    line.write(IER, IER_TRANSMITTER_EMPTY)
    assert line.interrupts == 1
    assert line.cause() == IIR_TRANSMITTER_EMPTY
    assert line.cause() == IIR_NONE
    line.write(DATA, 1)
    assert line.interrupts == 2


def test_the_host_is_told_once_for_what_an_interrupt_handler_sends() -> None:
    line = Line()
    line.write(IER, IER_TRANSMITTER_EMPTY)
    for _ in range(4):
        assert line.cause() == IIR_TRANSMITTER_EMPTY
        for value in range(16):
            line.write(DATA, value)
    assert line.outputs == 0
    line.write(IER, 0)
    assert (line.outputs, len(line.uart.take())) == (1, 64)


def test_a_handler_that_leaves_its_interrupt_enabled_is_heard_too() -> None:
    line = Line()
    line.write(IER, IER_TRANSMITTER_EMPTY)
    line.write(DATA, 1)
    assert line.cause() == IIR_TRANSMITTER_EMPTY
    assert line.cause() == IIR_NONE
    assert (line.outputs, line.uart.take()) == (1, bytes([1]))


def test_nothing_is_sent_while_rts_is_down() -> None:
    line = Line(modem_control=MCR_DTR | MCR_OUT2)
    line.write(IER, IER_RECEIVED)
    line.uart.receive(b"later")
    assert not line.read(LSR) & LSR_DATA_READY
    assert line.interrupts == 0
    line.write(MCR, READY)
    assert (line.interrupts, line.rooms) == (1, 1)
    assert line.drain() == b"later"


def test_cts_follows_what_waits_for_the_host() -> None:
    line = Line()
    line.write(IER, IER_MODEM_STATUS)
    for _ in range(CTS_DOWN):
        assert line.read(MSR) & MSR_CTS
        line.write(DATA, 0x55)
    assert line.interrupts == 1
    assert line.read(MSR) & (MSR_CTS | MSR_DELTA_CTS) == MSR_DELTA_CTS
    assert len(line.uart.take()) == CTS_DOWN
    assert line.interrupts == 2
    assert line.read(MSR) & (MSR_CTS | MSR_DELTA_CTS) == MSR_CTS | MSR_DELTA_CTS
    assert line.read(MSR) & MSR_DELTA_CTS == 0


def test_a_guest_that_ignores_cts_and_the_line_status_loses_its_own_bytes() -> None:
    line = Line()
    for _ in range(TRANSMIT_LIMIT + 5):
        line.write(DATA, 1)
    assert not line.read(LSR) & LSR_HOLDING_EMPTY
    assert (len(line.uart.take()), line.uart.overruns) == (TRANSMIT_LIMIT, 5)
    assert line.read(LSR) & LSR_HOLDING_EMPTY


def test_input_is_bounded_and_asks_for_more_at_half() -> None:
    line = Line()
    assert line.uart.receive(bytes(RECEIVE_LIMIT + 10)) == RECEIVE_LIMIT
    assert line.uart.room == 0
    for _ in range(RECEIVE_LIMIT // 2):
        line.read(DATA)
    assert line.rooms == 1


def test_other_sizes_than_bytes_do_nothing() -> None:
    line = Line()
    line.uart.write(DATA, 2, 0x4142)
    assert line.uart.read(LSR, 4) == 0xFFFF_FFFF
    assert line.uart.take() == b""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["to guest", "from guest", "rts", "read", "take"]), st.integers(0, 255)), max_size=200))
def test_no_byte_is_lost_or_reordered(actions: list[tuple[str, int]]) -> None:
    line = Line()
    given_to_guest, seen_by_guest, sent_by_guest, seen_by_host = bytearray(), bytearray(), bytearray(), bytearray()
    for action, value in actions:
        if action == "to guest":
            data = bytes([value]) * (value * 8)
            given_to_guest += data[: line.uart.receive(data)]
        elif action == "from guest" and line.read(LSR) & LSR_HOLDING_EMPTY:
            line.write(DATA, value)
            sent_by_guest.append(value)
        elif action == "rts":
            line.write(MCR, READY if value & 1 else MCR_OUT2)
        elif action == "read" and line.read(LSR) & LSR_DATA_READY:
            seen_by_guest.append(line.read(DATA))
        elif action == "take":
            seen_by_host += line.uart.take()
    line.write(MCR, READY)
    assert seen_by_guest + line.drain() == given_to_guest
    assert seen_by_host + line.uart.take() == sent_by_guest


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)), max_size=100))
def test_any_access_gives_a_value_of_its_size(accesses: list[tuple[bool, int, int, int]]) -> None:
    line = Line()
    for write, offset, size, value in accesses:
        if write:
            line.uart.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= line.uart.read(offset, size) < 1 << 8 * size
