"""A 16550A UART with RTS/CTS flow control (National Semiconductor PC16550D data sheet, 8.0).

Its line has no speed: bytes pass at once while there is room. None is lost in either direction.
Towards the guest, nothing is sent while RTS is down, and what waits is bounded (`room`). From the
guest, CTS goes down while its bytes are not taken; at the bound the transmitter is not empty.
"""

from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Annotated

from mayfly.schema import Meta, Record
from mayfly.vmm.snapshot.state import U8, Saved, exactly

RECEIVE_LIMIT = 4096  # Bytes that may wait for the guest
CTS_DOWN, CTS_UP = 32 * 1024, 8 * 1024
"""Bytes that wait for the host when CTS goes down, and at which it comes up again."""
TRANSMIT_LIMIT = 64 * 1024
BATCH = 1024
"""Bytes from an interrupt-driven guest after which the host is told although more will come."""


class Register(IntEnum):
    """Offsets from the base port. With DLAB set, 0 and 1 are the divisor."""

    DATA = 0
    IER = 1
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


class Ier(IntFlag):
    """Interrupt enable."""

    RECEIVED = 1 << 0
    TRANSMITTER_EMPTY = 1 << 1
    LINE_STATUS = 1 << 2
    MODEM_STATUS = 1 << 3


class Iir(IntEnum):
    """Interrupt identification, by falling priority (line status never occurs here)."""

    RECEIVED = 0x04
    TRANSMITTER_EMPTY = 0x02
    MODEM_STATUS = 0x00
    NONE = 0x01


FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVE = 1 << 0, 1 << 1
LCR_DLAB = 1 << 7


class Mcr(IntFlag):
    """Modem control."""

    DTR = 1 << 0
    RTS = 1 << 1
    OUT1 = 1 << 2
    OUT2 = 1 << 3
    LOOP = 1 << 4


class Lsr(IntFlag):
    """Line status."""

    DATA_READY = 1 << 0
    OVERRUN = 1 << 1
    HOLDING_EMPTY = 1 << 5
    TRANSMITTER_EMPTY = 1 << 6


class Msr(IntFlag):
    """Modem status."""

    DELTA_CTS = 1 << 0
    CTS = 1 << 4
    DSR = 1 << 5
    RING = 1 << 6
    CARRIER = 1 << 7


LOOPED = ((Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RING), (Mcr.OUT2, Msr.CARRIER))
"""What modem control becomes in modem status in loopback mode."""


class SerialState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of one; `registers`: LCR, SCR, DLL, DLM."""

    ier: Annotated[int, Meta(ge=0, le=0x0F)]
    mcr: Annotated[int, Meta(ge=0, le=0x1F)]
    registers: Annotated[tuple[U8, ...], exactly(4)]
    fifo: bool
    cts: bool
    delta_cts: bool
    empty_pending: bool
    line: bool
    input: Annotated[bytes, Meta(max_length=RECEIVE_LIMIT)]
    output: Annotated[bytes, Meta(max_length=TRANSMIT_LIMIT)]


class Serial:
    """One UART. Not for use by two threads at once.

    Args:
        interrupt: raises the line; called when the first cause of an interrupt appears.
        on_output: called when bytes wait for the host (`take`): at the first from a guest that
            polls; from one that works by interrupts when it has no more, as a thread woken for
            every byte would take turns with the vCPU's.
        on_room: called when bytes for the guest (`receive`) are welcome again after `room` was 0 or
            the guest held RTS down.
    """

    def __init__(self, interrupt: Callable[[], None], on_output: Callable[[], None], on_room: Callable[[], None]) -> None:
        self._interrupt, self._on_output, self.on_room = interrupt, on_output, on_room
        self._input = bytearray()
        self._output = bytearray()
        self._ier = Ier(0)
        self._fifo = False
        self._lcr = 0
        self._mcr = Mcr(0)
        self._scr = 0
        self._divisor = [1, 0]
        self._cts = True
        self._delta_cts = False
        self._empty_pending = False
        self._line = False
        self.data_accesses = 0
        """Reads and writes of data: the bytes themselves, as opposed to their administration."""
        self.overruns = 0
        """Bytes that the guest wrote although the transmitter was full for long: dropped."""

    @property
    def room(self) -> int:
        """How many bytes `receive` takes now."""
        return RECEIVE_LIMIT - len(self._input)

    def receive(self, data: bytes | memoryview) -> int:
        """Bytes for the guest arrive; how many of them were taken."""
        count = min(len(data), self.room)
        self._input += data[:count]
        self._update()
        return count

    def take(self) -> bytes:
        """Remove and return what the guest has sent."""
        data = bytes(self._output)
        self._output.clear()
        if not self._cts:
            self._set_cts(True)
        return data

    def read(self, offset: int, size: int) -> int:
        """The guest reads a register; only byte accesses exist."""
        if size != 1:
            return (1 << 8 * size) - 1
        register = Register(offset)
        if register is Register.LSR:
            return self._line_status()
        if (register is Register.DATA and self._lcr & LCR_DLAB) or (register is Register.IER and self._lcr & LCR_DLAB):
            return self._divisor[register]
        if register is Register.DATA:
            return self._read_data()
        if register is Register.IIR_FCR:
            return self._identify()
        if register is Register.MSR:
            return self._modem_status()
        return {Register.IER: self._ier, Register.LCR: self._lcr, Register.MCR: self._mcr}.get(register, self._scr)

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes a register; only byte accesses exist."""
        if size != 1:
            return
        register = Register(offset)
        if register in (Register.DATA, Register.IER) and self._lcr & LCR_DLAB:
            self._divisor[register] = value
        elif register is Register.DATA:
            self._write_data(value)
        elif register is Register.IER:
            enabled = Ier(value & 0x0F)
            self._empty_pending = bool(enabled & Ier.TRANSMITTER_EMPTY) and (self._empty_pending or Ier.TRANSMITTER_EMPTY not in self._ier)
            self._ier = enabled
            if not enabled & Ier.TRANSMITTER_EMPTY:
                self._announce()
        elif register is Register.IIR_FCR:
            self._fifo = bool(value & FCR_ENABLE)
            if value & FCR_CLEAR_RECEIVE and self._mcr & Mcr.LOOP:
                self._input.clear()
        elif register is Register.LCR:
            self._lcr = value
        elif register is Register.MCR:
            self._write_modem_control(Mcr(value & 0x1F))
        elif register is Register.SCR:
            self._scr = value
        self._update()

    def save(self) -> SerialState:
        """What a snapshot needs: registers, and the bytes that wait on either side."""
        return SerialState(
            ier=int(self._ier),
            mcr=int(self._mcr),
            registers=(self._lcr, self._scr, *self._divisor),
            fifo=self._fifo,
            cts=self._cts,
            delta_cts=self._delta_cts,
            empty_pending=self._empty_pending,
            line=self._line,
            input=bytes(self._input),
            output=bytes(self._output),
        )

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called; the interrupt controller restores a raised interrupt."""
        state = saved.decode(SerialState)
        self._ier, self._mcr = Ier(state.ier), Mcr(state.mcr)
        self._lcr, self._scr, *self._divisor = state.registers
        self._fifo, self._cts, self._delta_cts = state.fifo, state.cts, state.delta_cts
        self._empty_pending, self._line = state.empty_pending, state.line
        self._input, self._output = bytearray(state.input), bytearray(state.output)
        self._announce()

    def _readable(self) -> bool:
        return bool(self._input) and bool(self._mcr & (Mcr.RTS | Mcr.LOOP))

    def _read_data(self) -> int:
        self.data_accesses += 1
        if not self._readable():
            return 0
        value = self._input.pop(0)
        self._update()
        if len(self._input) == RECEIVE_LIMIT // 2:
            self.on_room()
        return value

    def _write_data(self, value: int) -> None:
        self.data_accesses += 1
        if self._mcr & Mcr.LOOP:
            self._input.append(value) if self.room else None
        elif len(self._output) < TRANSMIT_LIMIT:
            self._output.append(value)
            if len(self._output) % BATCH == 0 or (len(self._output) == 1 and not self._ier & Ier.TRANSMITTER_EMPTY):
                self._on_output()
            if self._cts and len(self._output) >= CTS_DOWN:
                self._set_cts(False)
        else:
            self.overruns += 1
        self._empty_pending = True

    def _write_modem_control(self, value: Mcr) -> None:
        raised = value & Mcr.RTS and not self._mcr & Mcr.RTS
        self._mcr = value
        if raised and self.room:
            self.on_room()

    def _set_cts(self, up: bool) -> None:
        self._cts, self._delta_cts = up, True
        self._update()

    def _line_status(self) -> int:
        full = len(self._output) >= TRANSMIT_LIMIT
        return (Lsr.DATA_READY if self._readable() else 0) | (0 if full else Lsr.HOLDING_EMPTY | Lsr.TRANSMITTER_EMPTY)

    def _modem_status(self) -> int:
        if self._mcr & Mcr.LOOP:
            return sum(status for control, status in LOOPED if self._mcr & control)
        status = Msr.DSR | Msr.CARRIER | (Msr.CTS if self._cts else 0) | (Msr.DELTA_CTS if self._delta_cts else 0)
        self._delta_cts = False
        self._update()
        return status

    def _cause(self) -> Iir:
        if self._ier & Ier.RECEIVED and self._readable():
            return Iir.RECEIVED
        if self._ier & Ier.TRANSMITTER_EMPTY and self._empty_pending and len(self._output) < TRANSMIT_LIMIT:
            return Iir.TRANSMITTER_EMPTY
        if self._ier & Ier.MODEM_STATUS and self._delta_cts:
            return Iir.MODEM_STATUS
        return Iir.NONE

    def _identify(self) -> int:
        cause = self._cause()
        if cause is Iir.TRANSMITTER_EMPTY:
            self._empty_pending = False
        elif cause is Iir.NONE:
            self._announce()
        self._update()
        return cause | (FIFO_ENABLED if self._fifo else 0)

    def _announce(self) -> None:
        if self._output:
            self._on_output()

    def _update(self) -> None:
        line = self._cause() is not Iir.NONE and bool(self._mcr & Mcr.OUT2)
        if line and not self._line:
            self._interrupt()
        self._line = line
