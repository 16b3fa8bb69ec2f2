"""Invariant: whatever befalls a machine, it ends with a typed error or its own reason, no other one
is affected, the next one starts, and nothing is left.

Machines are started, used, stopped, killed and starved of descriptors, forks, memory and disk at
random. Everything follows from the seed.
"""

import asyncio
import contextlib
import os
import random
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mayfly.errors import MayflyError
from mayfly.guests import zygote as zygote_module
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.zygote import START, Zygote
from mayfly.protocol.report import Ended
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig
from tests.kit import tiny
from tests.kit.scale import FULL
from tests.kit.tiny import RESET
from tests.kvm.test_machine import ECHO

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(3600 if FULL else 240)]

MACHINES = 2_000 if FULL else 100
WAVE = 8
SEEDS = (1,)
PATIENCE_S = 60.0
KERNELS = {"echo": ECHO, "spin": "1: jmp 1b\n", "reset": RESET, "crash": "mov rax, 0x7fffffffffff0000\nmov [rax], rax\n", "halt": "hlt\n"}
FAILING_FORK = """
import errno, os
from pathlib import Path
from mayfly.vmm.process import zygote
fork = zygote.fork
def fork_unless_starved():
    if Path({flag!r}).exists():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
zygote.fork = fork_unless_starved
"""


class Chaos:
    """One server's machines, and what it does to them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.flag = folder / "no-more-forks"
        self.kernels = {}
        for name, source in KERNELS.items():
            (folder / name).mkdir()
            self.kernels[name] = str(tiny.build(folder / name, source))
        self.zygotes: list[Zygote] = []
        self.spawner = Spawner(self.start_zygote)
        self.outcomes: Counter[str] = Counter()
        self.saved = 0

    def start_zygote(self) -> Zygote:
        self.zygotes.append(Zygote.start())
        return self.zygotes[-1]

    def config(self, kernel: str) -> MachineConfig:
        path = self.kernels.get(kernel, f"{self.folder}/no-such-kernel")
        return MachineConfig(kernel=path, memory=16 * MIB, channel=Channel.SERIAL, user="nobody")

    async def answers(self, machine: VmmProcess) -> bool:
        """Whether an echo machine gives back what it is sent."""
        word = self.rng.randbytes(5)
        async with asyncio.timeout(PATIENCE_S):
            if not await machine.write(word):
                return False
            got = b""
            while len(got) < len(word) and (data := await machine.read()):
                got += data
            return got == word

    @contextlib.contextmanager
    def starved(self, what: str) -> Iterator[None]:
        """While this lasts, the server or its zygote lacks something."""
        zygote = self.zygotes[-1].pid
        if what == "forks":
            self.flag.touch()
            try:
                yield
            finally:
                self.flag.unlink()
        elif what == "descriptors of the server":
            usual = resource.getrlimit(resource.RLIMIT_NOFILE)
            opened = len(list(Path("/proc/self/fd").iterdir()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (opened + self.rng.randrange(12), usual[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        elif what:
            limit, most = {
                "descriptors": (resource.RLIMIT_NOFILE, self.rng.randrange(6, 20)),
                "memory": (resource.RLIMIT_AS, address_space(zygote) + self.rng.randrange(1, 24) * MIB),
                "disk": (resource.RLIMIT_FSIZE, self.rng.choice((0, 1 << 12, 1 << 16))),
            }[what]
            usual = resource.prlimit(zygote, limit)
            resource.prlimit(zygote, limit, (most, usual[1]))
            try:
                yield
            finally:
                resource.prlimit(zygote, limit, usual)
        else:
            yield

    async def life(self) -> None:
        """One machine, from its start to an end of some kind; it is counted."""
        rng = self.rng
        kernel = rng.choice((*KERNELS, "none"))
        fate = rng.choice(("wait", "stop", "stop at once", "kill", "feed", "save", "pause", "cancel"))
        try:
            machine = await self.begin(kernel, cancel=fate == "cancel")
            if machine is None:
                return
            if fate == "feed":
                async with asyncio.timeout(PATIENCE_S):
                    await machine.write(rng.randbytes(rng.choice((1, 5_000))))
            elif fate == "save":
                self.saved += 1
                target = self.folder / f"saved-{self.saved}"
                target.mkdir()
                with contextlib.suppress(MayflyError):
                    await machine.snapshot(target, go_on=rng.random() < 0.5, timeout_s=PATIENCE_S)
            elif fate == "pause":
                with contextlib.suppress(MayflyError):
                    await machine.pause()
                    await machine.resume()
            elif fate == "kill":
                await asyncio.sleep(0)  # anywhere in its start
            self.count(await machine.stop(0 if fate in ("kill", "stop at once") else PATIENCE_S))
        except MayflyError as error:
            assert error.message
            self.outcomes[type(error).__name__] += 1

    async def begin(self, kernel: str, *, cancel: bool) -> VmmProcess | None:
        spawning = asyncio.create_task(self.spawner.spawn(self.config(kernel)))
        if cancel:
            await asyncio.sleep(0)
            spawning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await spawning).stop(0)
            self.outcomes["cancelled"] += 1
            return None
        return await spawning

    def count(self, ended: Ended) -> None:
        if ended.error is not None:
            assert "a fault of the monitor" not in ended.error.message, (ended.error.message, ended.error.hint)
            self.outcomes[type(ended.error).__name__] += 1
        else:
            self.outcomes[ended.reason] += 1

    @contextlib.asynccontextmanager
    async def bystander(self) -> AsyncIterator[VmmProcess]:
        machine = await self.spawner.spawn(self.config("echo"))
        try:
            yield machine
        finally:
            await machine.stop()


def address_space(pid: int) -> int:
    """Bytes (VmSize, proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


LACKS = ("", "", "descriptors", "descriptors of the server", "forks", "memory", "disk")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("no_leaks")
def test_no_machine_affects_another_and_nothing_is_left(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    chaos = Chaos(seed, tmp_path)
    monkeypatch.setattr(zygote_module, "START", FAILING_FORK.format(flag=str(chaos.flag)) + START)

    async def play() -> None:
        async with chaos.bystander() as bystander:
            assert await chaos.answers(bystander)
            for _ in range(MACHINES // WAVE):
                with chaos.starved(chaos.rng.choice(LACKS)):
                    await asyncio.gather(*(chaos.life() for _ in range(WAVE)))
                assert await chaos.answers(bystander), "another machine was affected"
            async with chaos.bystander() as fresh:
                assert await chaos.answers(fresh), "the server does not answer"
            [zygote] = chaos.zygotes  # it has never died
            assert len(children(zygote.pid)) == 1  # the bystander alone
        await chaos.spawner.close()

    asyncio.run(play())
    print(f"seed {seed}: {dict(chaos.outcomes)}")
    assert sum(chaos.outcomes.values()) == MACHINES // WAVE * WAVE
    assert {"HostError", "reset"} <= set(chaos.outcomes)
    assert not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
