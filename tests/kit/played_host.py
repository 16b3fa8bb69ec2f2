"""A host of a fleet that is played: it takes work and says what a test has it say, field by field,
as one of another version might.
"""

import asyncio
from typing import Any

import msgspec

from mayfly.fleet.engine import Delivery, Engine, Message
from mayfly.fleet.message import About, Beat, Begin, Begun, Ending, Settle, Tail, Told, Work, decode, encode, token_of
from mayfly.fleet.wire import from_event, place
from mayfly.guests.outcome import StepResult
from mayfly.images.store import InstalledImage
from mayfly.protocol.frames import Exit, ExitHow, Limit, Stage, Stdout
from mayfly.runs.record import START, Record, RunEvent
from mayfly.runs.result import RunState

NEWER = {"a_field_of_the_next_version": [1, {"two": 3}]}


def newer(message: Any) -> bytes:
    """The message as the next version may have it: with a field that this one does not know."""
    return encode({**msgspec.msgpack.decode(encode(message)), **NEWER})


class PlayedHost:
    """A host with one image, which takes as much work as it asks for."""

    def __init__(self, engine: Engine, image: InstalledImage) -> None:
        self.engine, self.image = engine, image
        self.lang = token_of(f"{image.manifest.language}@{image.manifest.version}")
        self.work: asyncio.Queue[tuple[Work, Delivery]] = asyncio.Queue()
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.hangs = False

    async def join(self) -> None:
        """Be one of the fleet's hosts."""
        name, arch = self.engine.name, self.image.manifest.arch
        about = About(name=name, arch=arch, version="9.9", images=[self.image.manifest.to_json().encode()])

        async def answer(message: Message, data: bytes) -> None:
            await self.engine.send(message.reply, data)

        self.answers: set[asyncio.Task[None]] = set()

        def answering(data: bytes) -> Any:
            def heard(message: Message) -> None:
                if not self.hangs:
                    self.answers.add(asyncio.ensure_future(answer(message, data)))

            return heard

        await self.engine.listen(f"about.{name}", answering(newer(about)))
        await self.engine.listen(f"ping.{name}", answering(b""))
        await self.engine.listen(f"host.{name}.*", self.heard.put_nowait)
        await self.engine.listen_for_work(self._delivered)
        beat = Beat(about="first", memory_used=0, memory_budget=1 << 30, running=0)
        await self.engine.send(f"beat.{name}", newer(beat))

    def _delivered(self, _: str, delivery: Delivery | None) -> None:
        if delivery is not None:
            self.work.put_nowait((decode(delivery.data, type=Work), delivery))

    async def take(self) -> tuple[Work, Delivery]:
        """Ask for a run until there is one."""
        while True:
            await self.engine.pull(self.image.manifest.arch, self.lang, priority=0, expires_s=1)
            try:
                return await asyncio.wait_for(self.work.get(), 1.5)
            except TimeoutError:
                continue

    async def ask(self, subject: str, message: Any) -> dict[str, Any]:
        """Ask a gateway as the next version would; its answer's fields."""
        answer: dict[str, Any] = msgspec.msgpack.decode(await self.engine.ask(subject, newer(message)))
        return answer

    async def begin(self, work: Work, delivery: Delivery) -> str:
        """Ask whether this host may have the run."""
        asked = Begin(token=work.token, delivered=delivery.delivered)
        return str((await self.ask(f"begin.{self.engine.name}.{work.id}", asked))["verdict"])

    async def open(self, work: Work, delivery: Delivery) -> str:
        """Say to the gateway of the run that this host has begun it, and ask whether it may."""
        begun = Begun(token=work.token, delivered=delivery.delivered, ack=delivery.ack)
        return str((await self.ask(f"gw.{work.gateway}.{self.engine.name}.{work.id}", begun))["verdict"])

    async def say(self, work: Work, message: Any) -> None:
        """Tell the gateway of the run something."""
        await self.engine.send(f"gw.{work.gateway}.{self.engine.name}.{work.id}", newer(message))

    def whole(self, delivered: int, text: bytes) -> tuple[Told, Tail]:
        """All that is said of a run that put out `text`, and ended."""
        ended = Exit(0, ExitHow.EXITED, 0, Limit.NONE, 1000, 1000, 1000, (False, False))
        record = Record()
        events: list[RunEvent] = [Stage(0, "run"), Stdout(text), StepResult("run", ended)]
        for event in events:
            record.append(event)
        told = [sent for event in events if (sent := from_event(event)) is not None]
        ending = newer(Ending(host=self.engine.name))
        return (
            Told(delivered=delivered, after=place(START), events=told, state=RunState.RUNNING, cost=len(text)),
            Tail(delivered=delivered, after=place(record.end), offset=0, size=len(ending), data=ending),
        )

    async def carry_out(self, work: Work, delivery: Delivery, text: bytes) -> None:
        """Say of the run that it put out `text`, and ended."""
        await self.say(work, Begun(token=work.token, delivered=delivery.delivered, ack=delivery.ack))
        for said in self.whole(delivery.delivered, text):
            await self.say(work, said)
        settle = Settle(token=work.token, delivered=delivery.delivered)
        verdict = await self.ask(f"settle.{work.gateway}.{self.engine.name}.{work.id}", settle)
        assert verdict["verdict"] == "done"
        await self.engine.done(delivery.ack)
