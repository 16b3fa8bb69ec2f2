"""The asyncio side of the zygote, with a zygote that starts nothing."""

import asyncio
import os
import socket

from mayfly.guests.spawner import READ_SIZE, Spawner
from mayfly.guests.zygote import Zygote
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
