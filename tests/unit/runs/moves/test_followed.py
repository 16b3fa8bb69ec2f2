"""A run that went elsewhere, followed over connections that are played."""

import asyncio
from collections.abc import Iterator

import pytest

from mayfly.errors import ServerLostError
from mayfly.host.snippet import Mode
from mayfly.runs.moves.followed import Followed
from mayfly.runs.moves.link import Link
from mayfly.runs.moves.messages import Ask, Cancelled, Ended, Input, Message, Running
from mayfly.runs.run import Run
from mayfly.runs.stdin import LiveStdin, StdinWriter
from tests.kit.toy_moves import TIMES


class Lost(Link):
    """A connection that is lost when the first input is sent."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    async def send(self, message: Message) -> None:
        self._gone.set()
        raise ServerLostError("lost")

    async def receive(self) -> Message:
        await self._gone.wait()
        raise ServerLostError("lost")

    async def close(self) -> None:
        pass


class Slow(Link):
    """A connection on which a client's next words come while the first input is being sent; the run
    ends once all `words` are there.
    """

    def __init__(self, stdin: LiveStdin, writer: StdinWriter, words: list[bytes]) -> None:
        self._stdin, self._writer, self._whole, self._words = stdin, writer, b"".join(words), iter(words[1:])
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self.come = b""

    async def send(self, message: Message) -> None:
        if isinstance(message, Ask):
            self._answers.put_nowait(Running(taken=0))
        if isinstance(message, Input):
            assert message.offset == len(self.come)
            self.come += message.data
            for word in self._words:
                await self._writer.write(word)
                while self._stdin.waiting:
                    await asyncio.sleep(0)
        if self.come == self._whole:
            self._answers.put_nowait(Ended(error=None, files_error=None, has_files=False, phases={}, exits={}))

    async def receive(self) -> Message:
        return await self._answers.get()

    async def close(self) -> None:
        pass


def test_what_is_written_while_it_connects_again_is_sent_too() -> None:
    async def scenario() -> None:
        run = Run(language="py", version="3", mode=Mode.RAW, step_names=("run",), stdin=LiveStdin())
        with StdinWriter(run.stdin) as writer:
            slow = Slow(run.stdin, writer, [b"first ", b"second ", b"third"])
            links: Iterator[Link] = iter([slow])

            async def connect() -> Link:
                return next(links)

            followed = Followed(run, "0" * 32, Lost(), connect, to="there", skip=0, in_step=True, times=TIMES)
            await writer.write(b"first ")
            await asyncio.wait_for(followed.follow(), 20)
        assert slow.come == b"first second third"

    asyncio.run(scenario())


class Ending(Link):
    """A connection to a server that says that the run ended, when it is told to end it."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.closed = False
        self._told = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.said.append(message)
        self._told.set()

    async def receive(self) -> Message:
        await self._told.wait()
        return Ended(error=None, files_error=None, has_files=False, phases={}, exits={})

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_nobody_follows_is_ended_without_waiting(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mayfly.runs.moves.followed.CANCEL_S", 1e6)

    async def scenario() -> None:
        run = Run(language="py", version="3", mode=Mode.RAW, step_names=("run",))
        run.finish()
        end = run.record.end
        link: Lost | Ending = Lost() if lost else Ending()

        async def connect() -> Link:
            raise AssertionError

        followed = Followed(run, "0" * 32, link, connect, to="there", skip=0, in_step=True, times=TIMES)
        await asyncio.wait_for(followed.end("it was deleted"), 20)
        assert run.record.end == end
        if isinstance(link, Ending):
            assert link.said == [Cancelled(reason="it was deleted")]
            assert link.closed

    asyncio.run(scenario())
