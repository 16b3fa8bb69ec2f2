"""The asyncio side of the zygote, with a zygote that starts nothing."""

import asyncio
import os
import signal
import socket

from mayfly.errors import GuestError
from mayfly.guests.spawner import READ_SIZE, Spawner
from mayfly.guests.zygote import Zygote
from mayfly.protocol.control import Done
from mayfly.protocol.report import End, pack
from mayfly.protocol.spawning import Reaped
from mayfly.vmm.config import MachineConfig


class Idle(Zygote):
    """A zygote that hands over no process: the test holds the vmm process's end of the channel."""

    def __init__(self) -> None:
        control, self._other = socket.socketpair()
        super().__init__(0, control)
        self.channel: socket.socket

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int, control: int, *group: int) -> None:
        self.channel = socket.socket(fileno=os.dup(channel))

    def close(self) -> None:
        for end in (self._control, self._other, self.channel):
            end.close()

    def signal(self, machine: int, number: int) -> None:
        """There is no process."""

    def receive(self) -> Reaped:
        raise EOFError


class Refused(Idle):
    """A zygote whose machines are ended by their filters of system calls at once."""

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int, control: int, *group: int) -> None:
        super().spawn(machine, config, channel, report, control, *group)
        self._other.send(bytes([machine]))

    def receive(self) -> Reaped:
        return Reaped(machine=self._control.recv(1)[0], status=-signal.SIGSYS)


def test_a_machine_that_its_sandbox_has_ended_says_so() -> None:
    async def scenario() -> None:
        zygote = Refused()
        spawner = Spawner(lambda: zygote)
        machine = await spawner.spawn(MachineConfig(kernel="/nowhere"))
        ended = await machine.stop()
        await spawner.close()
        assert ended.reason is End.VANISHED
        assert not machine.lost
        assert isinstance(ended.error, GuestError)
        assert "SIGSYS" in ended.error.message

    asyncio.run(scenario())


class Commanded(Idle):
    """A zygote of a machine whose test answers its requests."""

    commands: socket.socket

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int, control: int, *group: int) -> None:
        super().spawn(machine, config, channel, report, control, *group)
        self.commands = socket.socket(fileno=os.dup(control))


def test_whoever_is_cancelled_as_the_answer_comes_is_cancelled() -> None:
    async def scenario() -> None:
        zygote = Commanded()
        spawner = Spawner(lambda: zygote)
        machine = await spawner.spawn(MachineConfig(kernel="/nowhere"))
        asking = asyncio.create_task(machine.pause())
        while not machine._awaited:
            await asyncio.sleep(0)
        zygote.commands.send(pack(Done()))
        machine._take_answer()
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        zygote.commands.close()
        zygote.channel.close()
        machine.reaped.set()
        await spawner.close()

    asyncio.run(scenario())


def test_a_channel_that_is_never_empty_leaves_others_their_turn() -> None:
    async def scenario() -> None:
        zygote = Idle()
        spawner = Spawner(lambda: zygote)
        turns = 0

        async def another() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        machine = await spawner.spawn(MachineConfig(kernel="/nowhere"))
        zygote.channel.sendall(bytes(8 * READ_SIZE))
        task = asyncio.create_task(another())
        pieces = 0
        received = 0
        while received < 8 * READ_SIZE:
            piece = await machine.read()
            assert 0 < len(piece) <= READ_SIZE
            received += len(piece)
            pieces += 1
        assert turns >= pieces >= 8
        task.cancel()
        zygote.channel.close()
        machine.reaped.set()
        await spawner.close()

    asyncio.run(scenario())
