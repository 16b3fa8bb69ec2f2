"""The channel's frames, as agent/PROTOCOL.md has them: bytes in, frames out. Nothing here reads or
writes a descriptor.

The messages themselves (mayfly/protocol/messages.py) can be had from here too, so that this module
is all that a user of the channel imports.

Two kinds of error: what we were asked to send does not fit the protocol (`EncodeError`, when
encoding), and what the other end sent is not a frame (never an exception: `FrameReader` drops it
and counts why).
"""

import struct
import zlib
from collections import Counter
from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple

import sliplib  # type: ignore[import-untyped]

from mayfly.errors import EncodeError, OversizeError
from mayfly.protocol.messages import *  # noqa: F403 (all of them, so that none is named twice)
from mayfly.protocol.messages import FROM_AGENT, FROM_HOST, MAX_FILES_SIZE, MAX_PAYLOAD, MAX_STEPS, WORK_FOLDER, FileEntry, Message, Start

END = b"\xc0"
MAX_PACKET = MAX_PAYLOAD + 9
MAX_ESCAPED = 2 * MAX_PACKET
_HEAD = struct.Struct("<BI")  # type, run
_CRC = struct.Struct("<I")  # CRC-32 of all before it
_KINDS = {kind.type: kind for kind in FROM_HOST + FROM_AGENT}


class BadPacket(StrEnum):
    """Why a packet was dropped."""

    SHORT = "too short"
    LONG = "too long"
    ESCAPE = "badly escaped"
    CRC = "wrong CRC"
    TYPE = "unknown type"
    PAYLOAD = "payload does not parse"


class Frame(NamedTuple):
    """A message and the run that it belongs to (0: to none)."""

    message: Message
    run: int


def pack(message: Message, run: int) -> bytes:
    """The packet of a message: type, run, payload, CRC.

    Raises:
        EncodeError: a value does not fit into its field, or the payload into a frame.
    """
    payload = message.encode()
    if len(payload) > MAX_PAYLOAD:
        raise OversizeError(
            f"a {message.type.name} frame of {len(payload)} bytes; at most {MAX_PAYLOAD} fit",
            hint="give fewer or shorter arguments, environment values and file names",
        )
    body = _HEAD.pack(message.type, run) + payload
    return body + _CRC.pack(zlib.crc32(body))


def encode_frame(message: Message, run: int = 0) -> bytes:
    """The bytes that carry a message: its packet, SLIP-escaped, between two ENDs.

    Raises:
        EncodeError: a value does not fit into its field, or the payload into a frame.
    """
    return END + bytes(sliplib.encode(pack(message, run))) + END


def unpack(packet: bytes, kinds: Collection[type[Message]]) -> Frame | BadPacket:
    """The frame in a packet that is no longer escaped, or why it has none. Only messages of `kinds`
    are accepted.
    """
    if len(packet) < MAX_PACKET - MAX_PAYLOAD:
        return BadPacket.SHORT
    if len(packet) > MAX_PACKET:
        return BadPacket.LONG
    body, crc = packet[: -_CRC.size], packet[-_CRC.size :]
    if _CRC.pack(zlib.crc32(body)) != crc:
        return BadPacket.CRC
    number, run = _HEAD.unpack_from(body)
    kind = _KINDS.get(number)
    if kind is None or kind not in kinds:
        return BadPacket.TYPE
    message = kind.decode(body[_HEAD.size :])
    return BadPacket.PAYLOAD if message is None else Frame(message, run)


class FrameReader:
    """Takes the stream's bytes in pieces of any size and gives whole frames; what is not a frame is
    dropped and counted.

    `kinds` are the messages to accept: FROM_AGENT on the host's side. Never holds more than
    MAX_ESCAPED bytes.
    """

    def __init__(self, kinds: Collection[type[Message]] = FROM_AGENT) -> None:
        self.dropped: Counter[BadPacket] = Counter()
        self._kinds = frozenset(kinds)
        self._packet = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in their order."""
        frames = []
        *ended, begun = data.split(END)
        for piece in ended:
            self._collect(piece)
            frame = self._finish()
            if frame is not None:
                frames.append(frame)
        self._collect(begun)
        return frames

    @property
    def begun(self) -> tuple[bytes, bool]:
        """What has come of a packet that has not ended yet, and whether the rest of it will be
        dropped. Another reader goes on from there when it is given this.
        """
        return bytes(self._packet), self._skipping

    @begun.setter
    def begun(self, value: tuple[bytes, bool]) -> None:
        packet, self._skipping = value
        self._packet = bytearray(packet[:MAX_ESCAPED])

    def _collect(self, piece: bytes) -> None:
        if self._skipping:
            return
        if len(self._packet) + len(piece) > MAX_ESCAPED:
            self._packet.clear()
            self._skipping = True
            self.dropped[BadPacket.LONG] += 1
            return
        self._packet += piece

    def _finish(self) -> Frame | None:
        escaped, self._packet, self._skipping = bytes(self._packet), bytearray(), False
        if not escaped:
            return None
        try:
            packet = sliplib.decode(escaped)
        except sliplib.ProtocolError:
            self.dropped[BadPacket.ESCAPE] += 1
            return None
        frame = unpack(packet, self._kinds)
        if isinstance(frame, BadPacket):
            self.dropped[frame] += 1
            return None
        return frame


def check_start(start: Start) -> None:
    """Check what the agent would refuse in a START (agent/PROTOCOL.md, Order).

    Raises:
        EncodeError: a file's path leaves /work, has an empty, `.` or `..` component or comes
            twice, its mode has more than permission bits; a variable's name is empty or holds `=`;
            the steps are not 1 to MAX_STEPS (with `keep` 0 to MAX_STEPS) with a program and an
            absolute directory each, or two of them take standard input; a function is not the last
            one, or takes standard input or has a terminal; so has what stands by, which is at most
            one program; files beside products.
        OversizeError: the files have more than MAX_FILES_SIZE bytes together.
    """
    _check_files(start.files)
    total = sum(entry.size for entry in start.files)
    if total > MAX_FILES_SIZE:
        raise OversizeError(f"the files have {total} bytes together; at most {MAX_FILES_SIZE} are taken")
    if start.from_products and start.files:
        raise EncodeError("a run that begins with products has no files of its own")
    if not (not start.keep) <= len(start.steps) <= MAX_STEPS or not all(
        step.argv and step.argv[0] and step.cwd.startswith("/") for step in start.steps
    ):
        raise EncodeError(f"a run has 1 to {MAX_STEPS} steps, each with a program to run and an absolute directory to run it in")
    if sum(step.stdin for step in start.steps) > 1:
        raise EncodeError("more than one step takes standard input")
    if any(step.function and (step is not start.steps[-1] or step.stdin or step.columns or step.rows) for step in start.steps):
        raise EncodeError("a function is the last step, and has neither standard input nor a terminal")
    if any(step.standby and (step.function or step.columns or step.rows or step.by_standby) for step in start.steps):
        raise EncodeError("what stands by is not a function, has no terminal, and starts anew")
    if sum(step.standby for step in start.steps) > 1:
        raise EncodeError("more than one program stands by")
    for name, _ in (*start.env, *(pair for step in start.steps for pair in step.env)):
        if not name or "=" in name:
            raise EncodeError(f"{name!r} is no name of an environment variable", hint="a name is not empty and holds no =")


def _check_files(files: Collection[FileEntry]) -> None:
    seen = set()
    for entry in files:
        inside = entry.path.removeprefix(WORK_FOLDER + "/")
        if {"", ".", ".."} & set(inside.split("/")):
            raise EncodeError(f"the file name {entry.path!r} is not one beneath {WORK_FOLDER}", hint="use a relative name without . and ..")
        if inside in seen:
            raise EncodeError(f"the file name {entry.path!r} comes twice")
        if entry.mode & ~0o777:
            raise EncodeError(f"the mode 0o{entry.mode:o} of {entry.path!r} has more than permission bits")
        seen.add(inside)
