"""Write vectors.json and vectors.txt: frames of every type and damaged ones, in hex, for the tests
of both sides.

Run from the top folder: `python -m agent.make_vectors`. A test holds that the files are what this
script writes.
"""

import json
import zlib
from pathlib import Path

import sliplib  # type: ignore[import-untyped]

from mayfly.protocol import frames as p

FOLDER = Path(__file__).parent
MARKER = "0123456789abcdef" * 4
NETWORK = "mayfly.mac=02:00:00:00:00:05 mayfly.address=10.87.0.2/16"

STEP = p.Step(
    name="build",
    argv=("rustc", "-o", "main", "main.rs"),
    env=(("LANG", "C"),),
    wall_ms=60_000,
    cpu_ms=50_000,
    memory=512 << 20,
    processes=128,
    output=1 << 20,
    file_size=64 << 20,
    stdin=True,
)
GOOD: dict[str, tuple[p.Message, int]] = {
    "start": (
        p.Start((("PATH", "/usr/bin"), ("RAW", "\udcff")), (STEP, p.Step("run", ("./main",))), (p.FileEntry("main.rs", 0o644, 12),)),
        7,
    ),
    "start-empty": (p.Start((), (), ()), 1),
    "start-keep": (p.Start((), (), (p.FileEntry("main.py", 0o644, 0),), keep=True), 7),
    "start-from-products": (p.Start((), (p.Step("run", ("./main",), stdin=True),), (), from_products=True), 8),
    "start-terminal": (p.Start((), (p.Step("run", ("./main",), stdin=True, columns=132, rows=43),), ()), 7),
    "start-function": (p.Start((), (p.Step("function", ("python3", "shim.py"), output=1 << 20, function=True),), ()), 7),
    "start-standby": (p.Start((), (p.Step("run", ("node", "standby.js"), stdin=True, standby=True),), ()), 7),
    "start-by-standby": (p.Start((), (p.Step("run", ("node", "main.js"), stdin=True, by_standby=True),), ()), 8),
    "file": (p.File(0, 0, b"fn main() {}"), 7),
    "begin": (p.Begin(), 7),
    "stdin": (p.Stdin(b"\xc0\xdb\xdc\xdd end and escape"), 7),
    "stdin-eof": (p.StdinEof(), 7),
    "signal": (p.Signal(15), 7),
    "collect": (p.Collect(("/work/out", "/root/.cache/go-build")), 7),
    "collect-globs": (p.Collect(("/work/**/*.png",), globs=True), 7),
    "resize": (p.Resize(80, 24), 7),
    "request": (p.Request(0xFFFFFFFE, "application/json", 3, b"[1]"), 7),
    "request-piece": (p.Request(1, "", 1 << 20, b"\xc0\xdb"), 7),
    "request-empty": (p.Request(1, "", 0, b""), 7),
    "resumed": (p.Resumed(1_700_000_000_000_000_000, bytes(range(16)), "mayfly", "", bytes(range(32))), 0),
    "resumed-network": (p.Resumed(1_700_000_000_000_000_000, bytes(range(16)), "mayfly", NETWORK, bytes(range(32))), 0),
    "moved": (p.Moved(1_700_000_000_000_000_000, bytes(16), "", "", b"\x07" * 16), 0),
    "shutdown": (p.Shutdown(), 0),
    "hello": (p.Hello(p.PROTOCOL_VERSION, "0.1.0", "x86_64", 812_345, MARKER), 0),
    "stage": (p.Stage(0, "build"), 7),
    "stdout": (p.Stdout(b"hello\n"), 7),
    "stdout-any-bytes": (p.Stdout(bytes(range(256))), 0xFFFFFFFF),
    "stderr": (p.Stderr("größe\n".encode()), 7),
    "exit": (p.Exit(1, p.ExitHow.EXITED, 101, p.Limit.NONE, 1_234_567, 1_000_000, 4 << 20, (False, True)), 7),
    "exit-limit": (p.Exit(1, p.ExitHow.SIGNALED, 9, p.Limit.WALL, 10_000_000, 9_900_000, 4 << 20, (True, False)), 7),
    "exit-not-started": (p.Exit(0, p.ExitHow.NOT_STARTED, 2, p.Limit.NONE, 100, 0, 0, (False, False)), 7),
    "done": (p.Done(), 7),
    "credit": (p.Credit(65536), 7),
    "collected-file": (p.Collected(0, p.FileEntry("/work/out", 0o100644, 3), True, False, b"abc"), 7),
    "collected-piece": (p.Collected(1, None, False, False, b"abc"), 7),
    "collected-last": (p.Collected(1, None, False, True, b""), 7),
    "error": (p.Error(p.ErrorCode.START_REFUSED, "file 0: the path leaves /work"), 7),
    "loaded": (p.Loaded(), 7),
    "response": (p.Response(0xFFFFFFFE, p.ResponseKind.ANSWER, 1_234_567, "text/plain; charset=utf-8", 2, b"ok"), 7),
    "response-exception": (p.Response(1, p.ResponseKind.EXCEPTION, 10, "application/json", 1 << 20, b"{"), 7),
    "response-empty": (p.Response(1, p.ResponseKind.ANSWER, 0, "", 0, b""), 7),
}


def packet(kind: int, run: int, payload: bytes) -> bytes:
    """A packet with a right CRC, whatever is in it."""
    body = bytes([kind]) + run.to_bytes(4, "little") + payload
    return body + zlib.crc32(body).to_bytes(4, "little")


def damaged() -> dict[str, tuple[bytes, p.BadPacket]]:
    """Packets that a receiver drops (none that is too long: it would fill the file). Their SLIP
    escaping is right.
    """
    stdout = p.pack(p.Stdout(b"hello\n"), 7)
    exit_payload = p.Exit(1, p.ExitHow.EXITED, 0, p.Limit.NONE, 1, 1, 1, (False, False)).encode()
    signal = p.Signal(15).encode()
    flags = b"\2" + b"\xaa\xaa\xbb\xbb"
    start = p.Start((), (p.Step("f", ("f",), columns=0xAAAA, rows=0xBBBB, function=True),), ()).encode()
    return {
        "short": (stdout[:8], p.BadPacket.SHORT),
        "one-byte": (b"\x01", p.BadPacket.SHORT),
        "crc-of-other-data": (stdout[:5] + b"jello\n" + stdout[-4:], p.BadPacket.CRC),
        "crc-bit": (stdout[:-1] + bytes([stdout[-1] ^ 1]), p.BadPacket.CRC),
        "crc-run": (b"\x83\x08" + stdout[2:], p.BadPacket.CRC),
        "cut": (stdout[:-1], p.BadPacket.CRC),
        "type-0": (packet(0, 7, b""), p.BadPacket.TYPE),
        "type-0x0d": (packet(0x0D, 7, b""), p.BadPacket.TYPE),
        "type-0xff": (packet(0xFF, 7, b""), p.BadPacket.TYPE),
        "begin-with-a-payload": (packet(p.FrameType.BEGIN, 7, b"\0"), p.BadPacket.PAYLOAD),
        "signal-without-number": (packet(p.FrameType.SIGNAL, 7, b""), p.BadPacket.PAYLOAD),
        "signal-with-a-byte-more": (packet(p.FrameType.SIGNAL, 7, signal + b"\0"), p.BadPacket.PAYLOAD),
        "collect-cut": (packet(p.FrameType.COLLECT, 7, b"\2\0\2\0/a\2\0/"), p.BadPacket.PAYLOAD),
        "collect-nul": (packet(p.FrameType.COLLECT, 7, b"\1\0\2\0/\0"), p.BadPacket.PAYLOAD),
        "start-of-65535-steps": (packet(p.FrameType.START, 7, b"\0\0\0\xff\xff"), p.BadPacket.PAYLOAD),
        "step-unknown-flag": (packet(p.FrameType.START, 7, start.replace(flags, b"\x10" + flags[1:])), p.BadPacket.PAYLOAD),
        "request-cut": (packet(p.FrameType.REQUEST, 7, p.Request(1, "", 0, b"").encode()[:-1]), p.BadPacket.PAYLOAD),
        "request-type-not-utf8": (packet(p.FrameType.REQUEST, 7, bytes(4) + b"\1\0\xff" + bytes(4)), p.BadPacket.PAYLOAD),
        "loaded-with-a-payload": (packet(p.FrameType.LOADED, 7, b"\0"), p.BadPacket.PAYLOAD),
        "response-unknown-kind": (packet(p.FrameType.RESPONSE, 7, bytes(4) + b"\2" + bytes(14)), p.BadPacket.PAYLOAD),
        "start-unknown-flag": (packet(p.FrameType.START, 7, b"\4" + bytes(6)), p.BadPacket.PAYLOAD),
        "collect-unknown-flag": (packet(p.FrameType.COLLECT, 7, b"\0\0\2"), p.BadPacket.PAYLOAD),
        "resize-without-rows": (packet(p.FrameType.RESIZE, 7, b"\x50\0"), p.BadPacket.PAYLOAD),
        "resumed-little-entropy": (packet(p.FrameType.RESUMED, 0, bytes(8 + 16 + 2 + 2 + 15)), p.BadPacket.PAYLOAD),
        "moved-little-entropy": (packet(p.FrameType.MOVED, 0, bytes(8 + 16 + 2 + 2 + 15)), p.BadPacket.PAYLOAD),
        "resumed-host-name-not-utf8": (packet(p.FrameType.RESUMED, 0, bytes(24) + b"\1\0\xff" + bytes(2 + 16)), p.BadPacket.PAYLOAD),
        "exit-unknown-limit": (packet(p.FrameType.EXIT, 7, exit_payload[:6] + b"\x06" + exit_payload[7:]), p.BadPacket.PAYLOAD),
        "exit-unknown-flag": (packet(p.FrameType.EXIT, 7, exit_payload[:-1] + b"\x04"), p.BadPacket.PAYLOAD),
        "error-unknown-code": (packet(p.FrameType.ERROR, 7, b"\x09\0\0\0"), p.BadPacket.PAYLOAD),
    }


ESCAPES = {"escape-of-nothing": b"abc\xdbdefghij", "escape-at-the-end": b"abcdefghij\xdb", "escape-twice": b"abcdefgh\xdb\xdb\xdd"}


def vectors() -> list[dict[str, str | int]]:
    """All vectors: `packed` is empty where the escaping itself is wrong; `verdict` is `ok` or why a
    receiver drops it.
    """
    rows: list[dict[str, str | int]] = []
    for name, (message, run) in GOOD.items():
        packed = p.pack(message, run)
        rows.append({"name": name, "meaning": repr(message), "run": run, **_hex(packed), "verdict": "ok"})
    for name, (packed, verdict) in damaged().items():
        rows.append({"name": name, "meaning": "", "run": 0, **_hex(packed), "verdict": verdict.value})
    for name, escaped in ESCAPES.items():
        rows.append({"name": name, "meaning": "", "run": 0, "packed": "", "escaped": escaped.hex(), "verdict": p.BadPacket.ESCAPE.value})
    return rows


def _hex(packed: bytes) -> dict[str, str]:
    return {"packed": packed.hex(), "escaped": sliplib.encode(packed).hex()}


def as_json() -> str:
    """The text of vectors.json."""
    return json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n"


def as_text() -> str:
    """The text of vectors.txt, for a reader without a JSON parser: name, packed, escaped, verdict,
    separated by tabs.
    """
    return "".join(f"{row['name']}\t{row['packed']}\t{row['escaped']}\t{row['verdict']}\n" for row in vectors())


if __name__ == "__main__":
    (FOLDER / "vectors.json").write_text(as_json())
    (FOLDER / "vectors.txt").write_text(as_text())
