"""Moves without machines: two services in one process, whose guests are toys with a state that can
travel (over the connections of road.py).
"""

import asyncio
import contextlib
import hashlib
import pickle
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import MayflyError
from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.start import Guest, StartKind
from mayfly.host.plan import want_machine
from mayfly.images.store import Images, InstalledImage
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import Conversation
from mayfly.protocol.report import End, Ended
from mayfly.runs.described import Description
from mayfly.runs.moves.images import MANIFEST
from mayfly.runs.moves.link import Place, Read, Round, Times, Write
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.snapshots import live, moving
from mayfly.vmm.config import MachineConfig, NetworkConfig
from mayfly.vmm.snapshot import FILES, STATE
from mayfly.vmm.snapshot.files import shape
from tests.kit.api_fakes import MARKER

TIMES = Times(answer_s=20, ready_s=20, flush_s=20, lost_s=20, again_s=0.001)
CREDIT = 1000
PACE_S = 0.002
"""A toy that counts slowly takes so long for each number, and leaves the processor to others."""


class World:
    """What the toys of a test have in common: no two machines of a run may run at a time."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.identities: list[p.Moved] = []
        self.running: dict[int, ToyProcess] = {}
        self.made: list[ToyProcess] = []
        self.limits: list[int] = []
        """Bytes a second of each move."""
        self.clones_left = 1 << 30
        """That come up; the one after them does not."""

    def fail_sometimes(self) -> None:
        """Count a clone that comes up."""
        if not self.clones_left:
            raise MayflyError("the clone failed")
        self.clones_left -= 1


class ToyProcess:
    """A vmm process whose guest counts on standard output until it has read `quit` or counted to
    the number in its source, and writes what it reads to standard error; slowly, if that number is
    below 0, where it never comes, or behind a `~`. All of it is `state`. Asked as a function it
    counts to the number in the request, and answers with how far it has counted.
    """

    phases: dict[str, float] = {}  # noqa: RUF012 (never written)

    def __init__(self, world: World, state: dict[str, Any] | None = None) -> None:
        self.world = world
        world.made.append(self)
        self.number = len(world.made)
        self.reaped = asyncio.Event()
        self.lost = False
        self.state: dict[str, Any] = state or {
            "out": b"",
            "begun": (b"", False),
            "n": 0,
            "run": 0,
            "ticking": False,
            "source": b"",
            "said": b"",
        }
        self.state.setdefault("lineage", self.number)
        self._sent = b""  # by the host, not taken yet
        self._come = bytearray()  # put out, not read yet
        self._changed = asyncio.Event()
        self._going = asyncio.Event()
        self._closed = False
        self._pumping = asyncio.create_task(self._pump())

    @property
    def alive(self) -> bool:
        return not self._closed

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        while not self._come and not self._closed:
            await self._changed.wait()
        data = bytes(self._come[:50])
        del self._come[:50]
        self._wake()
        return data

    async def write(self, data: bytes) -> bool:
        if self._closed:
            return False
        self._sent += data
        self._wake()
        return True

    async def flushed(self, timeout_s: float) -> bool:
        while self._sent and not self._closed:
            await self._changed.wait()
        return True

    async def rest(self) -> bytes:
        data = bytes(self._come)
        self._come.clear()
        return data

    async def pause(self) -> None:
        self._going.clear()
        self._stand()

    async def resume(self) -> None:
        if self._closed:
            raise MayflyError("the machine has ended")
        assert self.world.running.setdefault(self.state["lineage"], self) is self, "two machines of one run"
        self._going.set()

    async def stats(self) -> None:
        if self._closed:
            raise MayflyError("the machine has ended")

    def _stand(self) -> None:
        if self.world.running.get(self.state["lineage"]) is self:
            del self.world.running[self.state["lineage"]]

    async def stop(self, grace_s: float = 0) -> Ended:
        self.kill()
        await asyncio.wait([self._pumping])
        return Ended(reason=End.VANISHED)

    def die(self) -> None:
        """End as a process does that is killed from outside."""
        self.lost = True
        self.kill()

    def kill(self) -> None:
        self._closed = True
        self._stand()
        self._pumping.cancel()
        self.reaped.set()
        self._wake()

    async def _pump(self) -> None:
        while True:
            await self._going.wait()
            slow = self.state["source"].startswith((b"-", b"~"))
            idle = not self._sent and not self.state["out"]
            await asyncio.sleep(PACE_S if slow and idle else 0)
            if not self._going.is_set():
                continue
            size = self.world.random.randrange(1, 40)
            taken, self._sent = self._sent[:size], self._sent[size:]
            if taken:
                self._take(taken)
                self._wake()
            if self.state["ticking"] and (idle if slow else len(self.state["out"]) < 100):
                self._tick()
            if len(self._come) < 200 and (piece := self.state["out"][:size]):
                self.state["out"] = self.state["out"][size:]
                self._come += piece
                self._wake()

    def _put(self, message: p.Message) -> None:
        self.state["out"] += p.encode_frame(message, self.state["run"])

    def _take(self, data: bytes) -> None:
        reader = p.FrameReader(p.FROM_HOST)
        reader.begun = self.state["begun"]
        for frame in reader.feed(data):
            match frame.message:
                case p.Start() as start:
                    self.state |= {"run": frame.run, "steps": len(start.steps)}
                case p.File(data=data):
                    self.state["source"] += data
                case p.Begin():
                    for step in range(self.state["steps"] - 1):
                        self._put(p.Stage(step, ""))
                        self._put(p.Exit(step, p.ExitHow.EXITED, 0, p.Limit.NONE, 1, 1, 1, (False, False)))
                    self._put(p.Stage(self.state["steps"] - 1, ""))
                    self._put(p.Credit(CREDIT))
                    self.state["ticking"] = True
                case p.Request(id=number, data=data):
                    self.state |= {"run": frame.run, "asked": number, "source": data, "ticking": True}
                case p.Stdin(data=data):
                    self.state["said"] = (self.state["said"] + data)[-4:]
                    self._put(p.Stderr(data))
                    self._put(p.Credit(len(data)))
                case p.Signal(number=number):
                    self._put(p.Stderr(b"<%d>" % number))
                case p.Resize(columns=columns, rows=rows):
                    self._put(p.Stderr(b"<%dx%d>" % (columns, rows)))
                case p.Moved():
                    self.world.identities.append(frame.message)
        self.state["begun"] = reader.begun

    def _tick(self) -> None:
        state = self.state
        if state["said"] == b"quit" or state["n"] == int(state["source"].lstrip(b"~") or b"-1"):
            state["ticking"] = False
            if "asked" in state:
                data = b"%d" % state["n"]
                self._put(p.Response(state["asked"], p.ResponseKind.ANSWER, 5, "text/plain", len(data), data))
                return
            self._put(p.Exit(state["steps"] - 1, p.ExitHow.EXITED, 0, p.Limit.NONE, 1, 1, 1, (False, False)))
            self._put(p.Done())
        else:
            self._put(p.Stdout(b"%d\n" % state["n"]))
            state["n"] += 1


def counted(text: str) -> int:
    """How far a toy has counted, each number once and in its order."""
    lines = text.splitlines()
    assert lines == [str(number) for number in range(len(lines))]
    return len(lines)


def make_guest(process: ToyProcess | VmmProcess, wanted: Wanted) -> Guest:
    hello = p.Hello(p.PROTOCOL_VERSION, "toy", wanted.image.manifest.arch, 1, MARKER)
    conversation = Conversation(arch=wanted.image.manifest.arch, end_marker=MARKER, loaded=wanted.loaded)
    conversation.feed(p.encode_frame(hello, 0))
    return Guest(wanted=wanted, process=process, conversation=conversation, hello=hello, kind=StartKind.RESTORED)  # type: ignore[arg-type]


class ToyMachines:
    """How toys travel. `fails` names the call that raises an error, or is `death`: then the machine
    dies as soon as it has come. An `endless` one is never done with the rounds. Where `lacks` is a
    digest, there is no such image.
    """

    endless = False
    lacks = ""

    def __init__(self, service: Service, world: World, fails: str = "") -> None:
        self.service, self.world, self.fails = service, world, fails
        self.last: ToyProcess | None = None

    def _fail(self, call: str) -> None:
        if self.fails == call:
            raise MayflyError(f"{call} failed")

    async def offer(self, guest: Guest) -> bytes:
        return b"toy"

    async def look(self, run: Description, offer: bytes, image: InstalledImage | None) -> Place:
        assert offer == b"toy"
        if self.lacks and image is None:
            return Place(lacks=self.lacks)
        return Place(held=1)

    async def send_rounds(self, guest: Guest, write: Write, *, held: int, limit_bytes_s: int, progress: Callable[[Round], None]) -> None:
        assert held == 1
        self._fail("send_rounds")
        self.world.limits.append(limit_bytes_s)
        for number in (1, 2):
            await write(b"%c" % number * 1000)
            progress(Round(number=number, bytes=1000))
        if self.endless:
            await asyncio.Event().wait()

    async def send_last(self, guest: Guest, write: Write) -> None:
        await guest.process.pause()
        self._fail("send_last")
        await write(pickle.dumps(guest.process.state))  # type: ignore[attr-defined]

    async def receive(
        self, run: Description, offer: bytes, read: Read, *, held: int, network: NetworkConfig | None, image: InstalledImage | None
    ) -> Guest:
        data = b""
        while piece := await read(700):
            data += piece
        self._fail("receive")
        state = pickle.loads(data[2000:])
        wanted = want_machine(image or self.service.images.find(run.language), self.service.config, network)
        self.last = ToyProcess(self.world, state)
        if self.fails == "death":
            self.last.kill()
        return make_guest(self.last, wanted)


def with_content(content: bytes) -> tuple[InstalledImage, str]:
    """The image of `py` with another initramfs, which its manifest names; its digest."""
    image = Images().find("py")
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    manifest = replace(image.manifest, initramfs_digest=digest, initramfs_size=len(content))
    image.initramfs.write_bytes(content)
    (image.folder / MANIFEST).write_text(manifest.to_json())
    return image, digest


def play_toys(service: Service, world: World) -> None:
    """Have every run of the service get a toy."""

    async def get(wanted: Wanted, snapshot: Any = None) -> Guest:
        process = ToyProcess(world)
        await process.resume()
        return make_guest(process, wanted)

    service.supply.get = get  # type: ignore[method-assign]


def save_toys(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Have toys saved and cloned as live.py does it with machines."""

    async def save(
        guest: Guest,
        folder: Path,
        *,
        still: contextlib.AbstractAsyncContextManager[None] | None = None,
        at_rest: Callable[[], Awaitable[None]] | None = None,
    ) -> int:
        process: Any = guest.process
        async with still or contextlib.nullcontext():
            await process.pause()
            try:
                state = pickle.dumps(process.state)
                if at_rest:
                    await at_rest()
            finally:
                await process.resume()
        for name in FILES:
            (folder / name).write_bytes(state if name == STATE else b"")
        return len(state)

    async def clone(spawner: Spawner, wanted: Wanted, folder: Path) -> Guest:
        state = pickle.loads((folder / STATE).read_bytes())
        del state["lineage"]
        world.fail_sometimes()
        return make_guest(ToyProcess(world, state), wanted)

    monkeypatch.setattr(live, "save", save)
    monkeypatch.setattr(live, "clone", clone)


def lose_toys_while_saved(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Have the first toy that is saved die when nothing more is needed of it for that."""
    real = live.save

    async def save(guest: Guest, *given: Any, **named: Any) -> int:
        size = await real(guest, *given, **named)
        if len(world.made) == 1:
            guest.process.die()  # type: ignore[attr-defined]
            for _ in range(50):
                await asyncio.sleep(0)
        return size

    monkeypatch.setattr(live, "save", save)


def move_toys(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Have toys travel where machines do as moving.py has it."""

    async def send_rounds(guest: Guest, write: Write, *, held: int, limit_bytes_s: float | None) -> None:
        await write(b"r" * 1000)

    async def send_last(guest: Guest, write: Write) -> None:
        await guest.process.pause()
        state = pickle.dumps(guest.process.state)  # type: ignore[attr-defined]
        await write(len(state).to_bytes(4, "big") + state)

    async def receive(spawner: Spawner, wanted: Wanted, read: Read) -> Guest:
        async def exactly(size: int) -> bytes:
            data = b""
            while len(data) < size:
                data += await read(size - len(data))
            return data

        await exactly(1000)
        state = pickle.loads(await exactly(int.from_bytes(await exactly(4), "big")))
        return make_guest(ToyProcess(world, state), wanted)

    for name, call in (("send_rounds", send_rounds), ("send_last", send_last), ("receive", receive)):
        monkeypatch.setattr(moving, name, call)
    monkeypatch.setattr(moving, "offer", lambda guest: moving.Offer(**dict.fromkeys(TEXTS, ""), protocol=1, machine=SHAPE, layers=()))


TEXTS = ("mayfly", "arch", "identity", "kernel", "image", "language")
SHAPE = shape(MachineConfig(kernel="k"))
