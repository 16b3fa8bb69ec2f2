"""A run whose machine is a real one moves between two services, is saved, cloned, and lost: a tiny
guest plays the frames of an agent byte by byte, and its reader and its writer notice nothing.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.errors import NotMovableError, UnknownLanguageError
from mayfly.guests.job import Wanted
from mayfly.guests.start import Guest
from mayfly.guests.zygote import Zygote
from mayfly.host.snippet import Snippet
from mayfly.images.store import InstalledImage
from mayfly.protocol import frames as p
from mayfly.runs.forks import fork
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.moves.machines import HostMachines
from mayfly.runs.record import Reader, Restored
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace
from mayfly.vmm.config import Channel
from tests.kit import tiny
from tests.kit.api_fakes import install_toys, small_config
from tests.kit.moving_kit import LINE_STATUS, UART
from tests.kit.road import Road
from tests.kit.scale import patience
from tests.kit.toy_moves import TIMES, make_guest, with_content

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

MODEM_CONTROL = UART + 4
"""Of the UART; bit 1 asks for what the host sends (RTS)."""
CYCLE = 16
"""Numbers that the guest says in turn, each in a frame of its own."""
EXIT = p.Exit(0, p.ExitHow.EXITED, 0, p.Limit.NONE, 1, 1, 1, (False, False))


STEP = (p.Stage(0, "run"), p.Credit(1000))


def playing(
    folder: Path,
    hello: p.Hello | None = None,
    *,
    opening: Sequence[p.Message] = STEP,
    ending: Sequence[p.Message] = (EXIT, p.Done()),
    until: bytes = b"quit",
) -> str:
    """A guest that says its step has begun (`opening`), then one number after another until it has
    read four bytes, then that the step has ended. It writes to a page more for each byte. One that
    says `hello` waits then until it has read `go!!`.
    """
    (folder / "greeting").write_bytes(p.encode_frame(hello, 0) if hello else b"")
    parts: dict[str, list[p.Message]] = {
        "opening": [*opening],
        "cycle": [p.Stdout(b"%d\n" % number) for number in range(CYCLE)],
        "ending": [*ending],
    }
    for name, messages in parts.items():
        (folder / name).write_bytes(b"".join(p.encode_frame(message, 1) for message in messages))
    data = "".join(f'{name}: .incbin "{folder / name}"\n{name}_end:\n' for name in ("greeting", *parts))
    first = "greeting" if hello else "opening"
    return f"""
        cli
        mov esp, 0x400000
        mov dx, {MODEM_CONTROL}
        mov al, 2
        out dx, al
        xor ebx, ebx
        xor r9d, r9d
        xor r10d, r10d
        lea rsi, [rip + {first}]
        lea r8, [rip + {first}_end]
next:   mov dx, {LINE_STATUS}
        in al, dx
        test al, 1
        jz 1f
        mov dx, {UART}
        in al, dx
        shl ebx, 8
        mov bl, al
        cmp ebx, {int.from_bytes(b"go!!", "big"):#x}
        je go
        cmp ebx, {int.from_bytes(until, "big"):#x}
        jne next
        mov r10d, 1
        jmp next
go:     lea rsi, [rip + opening]
        lea r8, [rip + opening_end]
        xor r9d, r9d
        jmp next
1:      test r9d, r9d
        jnz next
        test al, 0x20
        jz next
        mov dx, {UART}
        mov al, [rsi]
        out dx, al
        inc r11d
        mov edi, r11d
        and edi, 0xff
        shl edi, 12
        mov [rdi + 0x1000000], r11d
        inc rsi
        cmp rsi, r8
        jne next
        lea rdi, [rip + ending_end]
        cmp rsi, rdi
        je done
        lea rdi, [rip + greeting_end]
        cmp rsi, rdi
        je done
        test r10d, r10d
        jnz quit
        lea rsi, [rip + cycle]
        lea r8, [rip + cycle_end]
        jmp next
quit:   lea rsi, [rip + ending]
        lea r8, [rip + ending_end]
        jmp next
done:   mov r9d, 1
        jmp next
{data}
    """


def play_tiny(service: Service) -> None:
    """Have every run of the service get a tiny guest that boots."""

    async def get(wanted: Wanted, snapshot: Any = None) -> Guest:
        return make_guest(await service.spawner.spawn(wanted.machine), wanted)

    service.supply.get = get  # type: ignore[method-assign]


def lack_images(service: Service) -> None:
    """Have a service find no image."""

    def find(name: str) -> InstalledImage:
        raise UnknownLanguageError(f"no image for {name}")

    service.images.find = find  # type: ignore[method-assign]


@pytest.mark.parametrize("lacking", [False, True], ids=["", "without an image there"])
def test_a_run_moves_with_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: bool) -> None:
    install_toys(monkeypatch, tmp_path)
    with_content(b"no root")  # whose digest is its own
    kernel = tiny.build(tmp_path, playing(tmp_path))
    config = small_config(tmp_path, kernel=kernel, channel=Channel.SERIAL, interactive_wall_s=600.0)

    async def scenario(here: Service, there: Service) -> None:
        play_tiny(here)
        if lacking:
            lack_images(there)
        road = Road(Moves(there, HostMachines(there), TIMES), iter(()))
        moves = Moves(here, HostMachines(here), TIMES)
        run = here.start(Snippet(language="py", source=b"quiet", interactive=True))
        while len(run.record.output(0)[0]) < 300:
            await run.record.changed()
        moved = await follow(moves.begin(run, road.connect, to="there"))
        assert moved.rounds >= 1
        before = len(run.record.output(0)[0])
        while len(run.record.output(0)[0]) < before + 100:
            await run.record.changed()
        with StdinWriter(run.stdin) as writer:
            await writer.write(b"quit")
        await run.done.wait()
        out, _ = run.record.output(0)
        numbers = [int(line) for line in out.split()]
        assert numbers == [index % CYCLE for index in range(len(numbers))]
        assert run.to_json()["status"] == "ok", run.to_json()["error"]
        assert there.get(run.id).record.output(0)[0] == out
        await road.close()

    async def whole() -> None:
        async with Service(config, Zygote.start) as here, Service(config, Zygote.start) as there:
            await asyncio.wait_for(scenario(here, there), patience(60))

    asyncio.run(whole())


def test_a_language_that_is_not_served_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its image is not sent; the run goes on where it was."""
    install_toys(monkeypatch, tmp_path)
    with_content(b"no root")
    kernel = tiny.build(tmp_path, playing(tmp_path))
    config = small_config(tmp_path, kernel=kernel, channel=Channel.SERIAL, interactive_wall_s=600.0)

    async def scenario(here: Service, there: Service) -> None:
        play_tiny(here)
        road = Road(Moves(there, HostMachines(there), TIMES), iter(()))
        run = here.start(Snippet(language="py", source=b"quiet", interactive=True))
        while not run.record.output(0)[0]:
            await run.record.changed()
        with pytest.raises(NotMovableError, match="no image for the language 'py"):
            await follow(Moves(here, HostMachines(here), TIMES).begin(run, road.connect, to="there"))
        assert road.log == ["Offer", "Misfits"]
        before = len(run.record.output(0)[0])
        while len(run.record.output(0)[0]) < before + 100:
            await run.record.changed()
        await here.end(run, "the test is over")
        await road.close()

    async def whole() -> None:
        there_config = replace(config, languages=("toy",))
        async with Service(config, Zygote.start) as here, Service(there_config, Zygote.start) as there:
            await asyncio.wait_for(scenario(here, there), patience(60))

    asyncio.run(whole())


def check_numbers(run: Run) -> None:
    """What the program has put out is whole."""
    numbers = [int(line) for line in run.record.output(0)[0].split(b"\n")[:-1]]
    assert numbers == [index % CYCLE for index in range(len(numbers))]


async def more(run: Run, size: int) -> None:
    """Wait for so many bytes more."""
    wanted = len(run.record.output(0)[0]) + size
    while len(run.record.output(0)[0]) < wanted:
        await run.record.changed()


async def quit(service: Service, run: Run) -> None:
    """Tell the program to end; all that it has put out is there."""
    with StdinWriter(run.stdin) as writer:
        await writer.write(b"quit")
    await service.settled(run)
    assert run.to_json()["status"] == "ok", run.to_json()["error"]
    check_numbers(run)


def test_a_run_is_saved_and_cloned_while_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    kernel = tiny.build(tmp_path, playing(tmp_path))
    config = small_config(tmp_path, kernel=kernel, channel=Channel.SERIAL, interactive_wall_s=600.0)

    async def scenario(service: Service) -> None:
        play_tiny(service)
        run = service.start(Snippet(language="py", source=b"quiet", interactive=True))
        await more(run, 30)
        saving = asyncio.create_task(service.save(run.id, "middle"))
        await more(run, 10)
        assert (await saving).manifest.run == run.id
        assert not run.done.is_set()
        await more(run, 30)
        runs = [run]
        for _ in range(2):  # the second is a clone's clone
            runs += await fork(service, runs[-1], 1)
            for one in runs[-2:]:
                await more(one, 30)
            await quit(service, runs[-2])
        await quit(service, runs[-1])

    async def whole() -> None:
        async with Service(config, Zygote.start) as service:
            await asyncio.wait_for(scenario(service), patience(90))

    asyncio.run(whole())


def test_a_run_outlasts_its_vmm_process_and_its_zygote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    kernel = tiny.build(tmp_path, playing(tmp_path))
    config = small_config(tmp_path, kernel=kernel, channel=Channel.SERIAL, run_wall_s=600.0)
    zygotes: list[Zygote] = []

    def start() -> Zygote:
        zygotes.append(Zygote.start())
        return zygotes[-1]

    async def scenario(service: Service) -> None:
        play_tiny(service)
        run = service.start(Snippet(language="py", source=b"quiet", checkpoint_every_s=1000))
        await more(run, 100)
        for number, lost in enumerate(("process", "zygote"), 1):
            lasting = service.work[run.id].lasting
            assert lasting
            await lasting.save()
            await more(run, 20)
            assert run.exchange
            if lost == "process":
                service.spawner.signal(run.exchange.guest.process.number, signal.SIGKILL)
            else:
                os.kill(zygotes[-1].pid, signal.SIGKILL)
            while sum(isinstance(event, Restored) for event in iter(Reader(run.record).take, None)) < number:
                await run.record.changed()
            await more(run, 30)
            check_numbers(run)
        await service.forget(run.id)
        assert not list(paths.saved_runs_dir().iterdir())

    async def whole() -> None:
        async with Service(config, start) as service:
            await asyncio.wait_for(scenario(service), patience(90))

    asyncio.run(whole())
