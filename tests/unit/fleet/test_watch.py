"""Which hosts a gateway takes for gone."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from mayfly.fleet import watch
from mayfly.fleet.failures import FullError, SilenceError
from mayfly.fleet.follow import Follow
from mayfly.fleet.message import About, Beat, Head, Registered, queue_of
from mayfly.fleet.mirror import make_run
from mayfly.fleet.roll import Roll
from mayfly.fleet.watch import MISSED, Watch
from mayfly.host.snippet import Mode


class Hangs:
    """An engine over which a host says nothing."""

    name = "g1"

    async def ask(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        assert (subject, data) == ("ping.h1", b"")
        raise SilenceError


class Stores:
    refused = False


class Follows:
    """One run, which h1 was handed. It is given back once there is room."""

    def __init__(self) -> None:
        head = Head(id="one", language="toy", version="1.0", mode=Mode.EVENTS, step_names=())
        self.follow = Follow(make_run(head), Registered(head=head, token="t", gateway="g1", arch="x", lang="toy"))
        self.follow.work, self.follow.handed_to = b"work", "h1"
        self.full = False

    def __iter__(self) -> Iterator[Follow]:
        return iter([self.follow])

    async def give_back(self, follow: Follow) -> None:
        if self.full:
            raise FullError
        follow.work = b""


async def nobody(arch: str, lang: str) -> None:
    pytest.fail(f"{lang} of {arch} is there")


def watching() -> tuple[Watch, Follows]:
    follows = Follows()
    return Watch(cast(Any, Hangs()), cast(Any, None), cast(Any, follows), cast(Any, Stores()), nobody), follows


def test_hosts_do_not_hang_when_the_engine_does() -> None:
    async def scenario() -> None:
        watch, follows = watching()
        watch.quorum = False
        for _ in range(2 * MISSED):
            await watch._look_at_hosts()
        watch.quorum = True
        for _ in range(MISSED - 1):
            await watch._look_at_hosts()
        assert follows.follow.work
        await watch._look_at_hosts()
        assert not follows.follow.work
        assert watch.given_back == 1

    asyncio.run(scenario())


def test_a_run_waits_for_its_snapshot_while_no_host_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a gateway has begun anew before its hosts have."""
    monkeypatch.setattr(watch, "GONE_S", 0)

    async def scenario() -> None:
        roll, decided = Roll(lambda _: None), []
        follows = Follows()
        follows.follow.known.set()
        follows.follow.registered.lang = queue_of("toy", "ours")

        async def decide(*_: object) -> None:
            decided.append(1)

        follows.decide = decide  # type: ignore[attr-defined]
        looking = Watch(cast(Any, Hangs()), roll, cast(Any, follows), cast(Any, Stores()), nobody)
        for name, arch, expected in (("", "", 0), ("h2", "y", 0), ("h1", "x", 1)):
            if name:
                roll.heard(name, Beat(about="", memory_used=0, memory_budget=1, running=0))
                await looking._look_for_snapshots()
                roll.told(name, About(name=name, arch=arch, version="1", images=[]))
            await looking._look_for_snapshots()
            assert len(decided) == expected

    asyncio.run(scenario())


def test_a_run_that_cannot_be_given_back_is_not_counted() -> None:
    async def scenario() -> None:
        watch, follows = watching()
        follows.full = True
        for _ in range(MISSED - 1):
            await watch._look_at_hosts()
        for _ in range(2):
            with pytest.raises(FullError):
                await watch._look_at_hosts()
        assert watch.given_back == 0
        follows.full = False
        await watch._look_at_hosts()
        assert watch.given_back == 1

    asyncio.run(scenario())


def test_a_look_that_fails_is_told_once_and_stops_no_other(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(watch, "WATCH_S", 0)

    class Silent(Hangs):
        """An engine whose servers are there."""

        connected = True

    async def scenario() -> None:
        looking = Watch(cast(Any, Silent()), Roll(lambda _: None), cast(Any, Follows()), cast(Any, Stores()), nobody)
        words, looks = iter(("broken", "broken", "", "broken", "otherwise")), 0

        async def fails() -> None:
            if word := next(words, ""):
                raise ValueError(word)

        async def counts() -> None:
            nonlocal looks
            looks += 1

        looking.beside = [fails, counts]
        watching = asyncio.create_task(looking._watch_fleet())
        async with asyncio.timeout(30):
            while looks < 6:
                await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(scenario())
    told = [(one.getMessage().rpartition(": ")[2], bool(one.exc_info)) for one in caplog.records if "fails" in one.getMessage()]
    assert told == [("ValueError('broken')", True), ("ValueError('broken')", True), ("ValueError('otherwise')", True)]
