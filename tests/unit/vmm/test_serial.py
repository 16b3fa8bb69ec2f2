"""The 16550: registers as Linux's driver uses them, interrupts, and no byte lost in either
direction.
"""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.vmm.devices.serial import CTS_DOWN, RECEIVE_LIMIT, TRANSMIT_LIMIT, Ier, Iir, Lsr, Mcr, Msr, Register, Serial

READY = Mcr.DTR | Mcr.RTS | Mcr.OUT2


class Line:
    """A UART and what it called."""

    def __init__(self, *, modem_control: int = READY) -> None:
        self.interrupts = self.outputs = self.rooms = 0
        self.uart = Serial(self._count("interrupts"), self._count("outputs"), self._count("rooms"))
        self.write(Register.MCR, modem_control)
        self.rooms = 0

    def _count(self, name: str) -> Callable[[], None]:
        return lambda: setattr(self, name, getattr(self, name) + 1)

    def read(self, register: Register) -> int:
        return self.uart.read(register, 1)

    def write(self, register: Register, value: int) -> None:
        self.uart.write(register, 1, value)

    def cause(self) -> int:
        return self.read(Register.IIR_FCR) & 0x0F

    def drain(self) -> bytes:
        data = bytearray()
        while self.read(Register.LSR) & Lsr.DATA_READY:
            data.append(self.read(Register.DATA))
        return bytes(data)


def test_linux_finds_a_16550a() -> None:
    line = Line(modem_control=0)
    line.write(Register.IER, 0x0F)
    assert line.read(Register.IER) == 0x0F
    line.write(Register.IER, 0)
    line.write(Register.MCR, Mcr.LOOP | Mcr.OUT2 | Mcr.RTS)
    assert line.read(Register.MSR) & 0xF0 == Msr.CARRIER | Msr.CTS
    line.write(Register.MCR, 0)
    line.write(Register.IIR_FCR, 1)
    assert line.read(Register.IIR_FCR) >> 6 == 3
    line.write(Register.SCR, 0xA5)
    assert line.read(Register.SCR) == 0xA5


def test_the_divisor_hides_data_and_ier() -> None:
    line = Line()
    line.write(Register.LCR, 0x83)
    line.write(Register.DATA, 12)
    line.write(Register.IER, 1)
    assert (line.read(Register.DATA), line.read(Register.IER)) == (12, 1)
    line.write(Register.LCR, 0x03)
    assert line.read(Register.IER) == 0
    assert line.uart.take() == b""


def test_input_raises_the_line_once_and_lowers_it_when_read() -> None:
    line = Line()
    line.write(Register.IER, Ier.RECEIVED)
    assert line.cause() == Iir.NONE
    line.uart.receive(b"ab")
    assert (line.interrupts, line.cause()) == (1, Iir.RECEIVED)
    assert line.drain() == b"ab"
    assert line.cause() == Iir.NONE
    line.uart.receive(b"c")
    assert line.interrupts == 2


def test_no_interrupt_leaves_without_out2() -> None:
    line = Line(modem_control=Mcr.RTS)
    line.write(Register.IER, Ier.RECEIVED)
    line.uart.receive(b"x")
    assert line.interrupts == 0
    line.write(Register.MCR, READY)
    assert line.interrupts == 1


def test_an_empty_transmitter_interrupts_when_enabled_and_after_each_byte() -> None:
    line = Line()
    line.write(Register.IER, Ier.TRANSMITTER_EMPTY)
    assert line.interrupts == 1
    assert line.cause() == Iir.TRANSMITTER_EMPTY
    assert line.cause() == Iir.NONE
    line.write(Register.DATA, 1)
    assert line.interrupts == 2


def test_the_host_is_told_once_for_what_an_interrupt_handler_sends() -> None:
    line = Line()
    line.write(Register.IER, Ier.TRANSMITTER_EMPTY)
    for _ in range(4):
        assert line.cause() == Iir.TRANSMITTER_EMPTY
        for value in range(16):
            line.write(Register.DATA, value)
    assert line.outputs == 0
    line.write(Register.IER, 0)
    assert (line.outputs, len(line.uart.take())) == (1, 64)


def test_a_handler_that_leaves_its_interrupt_enabled_is_heard_too() -> None:
    line = Line()
    line.write(Register.IER, Ier.TRANSMITTER_EMPTY)
    line.write(Register.DATA, 1)
    assert line.cause() == Iir.TRANSMITTER_EMPTY
    assert line.cause() == Iir.NONE
    assert (line.outputs, line.uart.take()) == (1, bytes([1]))


def test_nothing_is_sent_while_rts_is_down() -> None:
    line = Line(modem_control=Mcr.DTR | Mcr.OUT2)
    line.write(Register.IER, Ier.RECEIVED)
    line.uart.receive(b"later")
    assert not line.read(Register.LSR) & Lsr.DATA_READY
    assert line.interrupts == 0
    line.write(Register.MCR, READY)
    assert (line.interrupts, line.rooms) == (1, 1)
    assert line.drain() == b"later"


def test_cts_follows_what_waits_for_the_host() -> None:
    line = Line()
    line.write(Register.IER, Ier.MODEM_STATUS)
    for _ in range(CTS_DOWN):
        assert line.read(Register.MSR) & Msr.CTS
        line.write(Register.DATA, 0x55)
    assert line.interrupts == 1
    assert line.read(Register.MSR) & (Msr.CTS | Msr.DELTA_CTS) == Msr.DELTA_CTS
    assert len(line.uart.take()) == CTS_DOWN
    assert line.interrupts == 2
    assert line.read(Register.MSR) & (Msr.CTS | Msr.DELTA_CTS) == Msr.CTS | Msr.DELTA_CTS
    assert line.read(Register.MSR) & Msr.DELTA_CTS == 0


def test_a_guest_that_ignores_cts_and_the_line_status_loses_its_own_bytes() -> None:
    line = Line()
    for _ in range(TRANSMIT_LIMIT + 5):
        line.write(Register.DATA, 1)
    assert not line.read(Register.LSR) & Lsr.HOLDING_EMPTY
    assert (len(line.uart.take()), line.uart.overruns) == (TRANSMIT_LIMIT, 5)
    assert line.read(Register.LSR) & Lsr.HOLDING_EMPTY


def test_input_is_bounded_and_asks_for_more_at_half() -> None:
    line = Line()
    assert line.uart.receive(bytes(RECEIVE_LIMIT + 10)) == RECEIVE_LIMIT
    assert line.uart.room == 0
    for _ in range(RECEIVE_LIMIT // 2):
        line.read(Register.DATA)
    assert line.rooms == 1


def test_other_sizes_than_bytes_do_nothing() -> None:
    line = Line()
    line.uart.write(Register.DATA, 2, 0x4142)
    assert line.uart.read(Register.LSR, 4) == 0xFFFF_FFFF
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
        elif action == "from guest" and line.read(Register.LSR) & Lsr.HOLDING_EMPTY:
            line.write(Register.DATA, value)
            sent_by_guest.append(value)
        elif action == "rts":
            line.write(Register.MCR, READY if value & 1 else Mcr.OUT2)
        elif action == "read" and line.read(Register.LSR) & Lsr.DATA_READY:
            seen_by_guest.append(line.read(Register.DATA))
        elif action == "take":
            seen_by_host += line.uart.take()
    line.write(Register.MCR, READY)
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
