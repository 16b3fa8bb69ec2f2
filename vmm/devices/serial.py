"""A 16550A UART with RTS/CTS flow control (National Semiconductor PC16550D data sheet, 8.0).

Its line has no speed: bytes pass at once while there is room. None is lost in either direction.
Towards the guest, nothing is sent while RTS is down, and what waits is bounded (`room`). From the
guest, CTS goes down while its bytes are not taken; at the bound the transmitter is not empty.
"""

from collections.abc import Callable
from typing import Annotated, Any

from mayfly.schema import Meta
from mayfly.vmm.bus import BusDevice
from mayfly.vmm.snapshot.state import U8, Live, Saved, exactly

RECEIVE_LIMIT = 4096  # Bytes that may wait for the guest
CTS_DOWN = 32 * 1024  # Bytes that wait for the host when CTS goes down
TRANSMIT_LIMIT = 64 * 1024
BATCH = 1024
"""Bytes from an interrupt-driven guest after which the host is told although more will come."""
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)
"""Registers, by their offset from the base port. With DLAB set, 0 and 1 are the divisor."""

# Interrupt enable
IER_RECEIVED, IER_TRANSMITTER_EMPTY, IER_LINE_STATUS, IER_MODEM_STATUS = 1 << 0, 1 << 1, 1 << 2, 1 << 3
# Interrupt identification, by falling priority (line status never occurs here)
IIR_RECEIVED, IIR_TRANSMITTER_EMPTY, IIR_MODEM_STATUS, IIR_NONE = 0x04, 0x02, 0x00, 0x01
FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVE = 1 << 0, 1 << 1
LCR_DLAB = 1 << 7
# Modem control, line status, modem status
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
LSR_DATA_READY, LSR_HOLDING_EMPTY, LSR_TRANSMITTER_EMPTY = 1 << 0, 1 << 5, 1 << 6
MSR_DELTA_CTS, MSR_CTS, MSR_DSR, MSR_RING, MSR_CARRIER = 1 << 0, 1 << 4, 1 << 5, 1 << 6, 1 << 7
LOOPED = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RING), (MCR_OUT2, MSR_CARRIER))
"""What modem control becomes in modem status in loopback mode."""


class SerialState(Live, tag_field="version", tag=2, kw_only=True):
    """The registers, and the bytes that wait on either side: what a snapshot holds."""

    ier: Annotated[int, Meta(ge=0, le=0x0F)]
    mcr: Annotated[int, Meta(ge=0, le=0x1F)]
    lcr: U8
    scr: U8
    divisor: Annotated[list[U8], exactly(2)]
    fifo: bool
    cts: bool
    delta_cts: bool
    empty_pending: bool
    line: bool
    input: Annotated[bytearray, Meta(max_length=RECEIVE_LIMIT)]
    output: Annotated[bytearray, Meta(max_length=TRANSMIT_LIMIT)]


class Serial(BusDevice):
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
        registers: dict[str, Any] = {"ier": 0, "mcr": 0, "lcr": 0, "scr": 0, "divisor": [1, 0], "fifo": False}
        status: dict[str, Any] = {"cts": True, "delta_cts": False, "empty_pending": False, "line": False}
        self._state = SerialState(**registers, **status, input=bytearray(), output=bytearray())
        self.data_accesses = 0
        """Reads and writes of data: the bytes themselves, as opposed to their administration."""
        self.overruns = 0
        """Bytes that the guest wrote although the transmitter was full for long: dropped."""

    @property
    def room(self) -> int:
        """How many bytes `receive` takes now."""
        return RECEIVE_LIMIT - len(self._state.input)

    def receive(self, data: bytes | memoryview) -> int:
        """Bytes for the guest arrive; how many of them were taken."""
        count = min(len(data), self.room)
        self._state.input += data[:count]
        self._update()
        return count

    @property
    def output(self) -> bytes:
        """What the guest has sent."""
        return bytes(self._state.output)

    def take(self, count: int | None = None) -> bytes:
        """Remove and return the first `count` bytes, or all, of what the guest has sent."""
        data = bytes(self._state.output[:count])
        del self._state.output[: len(data)]
        if not self._state.cts and not self._state.output:
            self._set_cts(True)
        return data

    def read(self, offset: int, size: int) -> int:
        """The guest reads a register; only byte accesses exist."""
        if size != 1:
            return (1 << 8 * size) - 1
        state = self._state
        if offset == LSR:
            return self._line_status()
        if offset in (DATA, IER) and state.lcr & LCR_DLAB:
            return state.divisor[offset]
        if offset == DATA:
            return self._read_data()
        if offset == IIR_FCR:
            return self._identify()
        if offset == MSR:
            return self._modem_status()
        return {IER: state.ier, LCR: state.lcr, MCR: state.mcr}.get(offset, state.scr)

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes a register; only byte accesses exist."""
        if size != 1:
            return
        state = self._state
        if offset in (DATA, IER) and state.lcr & LCR_DLAB:
            state.divisor[offset] = value
        elif offset == DATA:
            self._write_data(value)
        elif offset == IER:
            newly = not state.ier & IER_TRANSMITTER_EMPTY
            state.ier = value & 0x0F
            state.empty_pending = bool(state.ier & IER_TRANSMITTER_EMPTY) and (state.empty_pending or newly)
            if not state.ier & IER_TRANSMITTER_EMPTY:
                self._announce()
        elif offset == IIR_FCR:
            state.fifo = bool(value & FCR_ENABLE)
            if value & FCR_CLEAR_RECEIVE and state.mcr & MCR_LOOP:
                state.input.clear()
        elif offset == LCR:
            state.lcr = value
        elif offset == MCR:
            raised = value & MCR_RTS and not state.mcr & MCR_RTS
            state.mcr = value & 0x1F
            if raised and self.room:
                self.on_room()
        elif offset == SCR:
            state.scr = value
        self._update()

    def save(self) -> SerialState:
        """What a snapshot needs, to be encoded at once."""
        return self._state

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called. A raised interrupt may not have reached the controller."""
        self._state = saved.decode(SerialState)
        if self._state.line:
            self._interrupt()
        self._announce()

    def _readable(self) -> bool:
        return bool(self._state.input) and bool(self._state.mcr & (MCR_RTS | MCR_LOOP))

    def _read_data(self) -> int:
        self.data_accesses += 1
        if not self._readable():
            return 0
        value = self._state.input.pop(0)
        self._update()
        if len(self._state.input) == RECEIVE_LIMIT // 2:
            self.on_room()
        return value

    def _write_data(self, value: int) -> None:
        self.data_accesses += 1
        if self._state.mcr & MCR_LOOP:
            self._state.input.append(value) if self.room else None
        elif len(self._state.output) < TRANSMIT_LIMIT:
            self._state.output.append(value)
            if len(self._state.output) % BATCH == 0 or (len(self._state.output) == 1 and not self._state.ier & IER_TRANSMITTER_EMPTY):
                self._on_output()
            if self._state.cts and len(self._state.output) >= CTS_DOWN:
                self._set_cts(False)
        else:
            self.overruns += 1
        self._state.empty_pending = True

    def _set_cts(self, up: bool) -> None:
        self._state.cts, self._state.delta_cts = up, True
        self._update()

    def _line_status(self) -> int:
        full = len(self._state.output) >= TRANSMIT_LIMIT
        return (LSR_DATA_READY if self._readable() else 0) | (0 if full else LSR_HOLDING_EMPTY | LSR_TRANSMITTER_EMPTY)

    def _modem_status(self) -> int:
        if self._state.mcr & MCR_LOOP:
            return sum(status for control, status in LOOPED if self._state.mcr & control)
        status = MSR_DSR | MSR_CARRIER | (MSR_CTS if self._state.cts else 0) | (MSR_DELTA_CTS if self._state.delta_cts else 0)
        self._state.delta_cts = False
        self._update()
        return status

    def _cause(self) -> int:
        if self._state.ier & IER_RECEIVED and self._readable():
            return IIR_RECEIVED
        if self._state.ier & IER_TRANSMITTER_EMPTY and self._state.empty_pending and len(self._state.output) < TRANSMIT_LIMIT:
            return IIR_TRANSMITTER_EMPTY
        if self._state.ier & IER_MODEM_STATUS and self._state.delta_cts:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _identify(self) -> int:
        cause = self._cause()
        if cause == IIR_TRANSMITTER_EMPTY:
            self._state.empty_pending = False
        elif cause == IIR_NONE:
            self._announce()
        self._update()
        return cause | (FIFO_ENABLED if self._state.fifo else 0)

    def _announce(self) -> None:
        if self._state.output:
            self._on_output()

    def _update(self) -> None:
        line = self._cause() != IIR_NONE and bool(self._state.mcr & MCR_OUT2)
        if line and not self._state.line:
            self._interrupt()
        self._state.line = line
