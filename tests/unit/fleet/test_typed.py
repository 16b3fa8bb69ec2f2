"""What clients type at several gateways: one order, for each attempt of the run."""

import asyncio
import random
from pathlib import Path
from typing import Any, cast

import pytest

from mayfly.errors import HostError, MayflyError, RequestError, RunEndedError
from mayfly.fleet import typed as typed_module
from mayfly.fleet.buckets import Bucket, Entry
from mayfly.fleet.failures import SilenceError
from mayfly.fleet.follow import Follow, Typing
from mayfly.fleet.message import Answer, Head, Input, Registered, ToHost, decode, encode
from mayfly.fleet.mirror import make_run
from mayfly.fleet.tasks import Tasks
from mayfly.fleet.typed import CHUNK, Chunk, Typed
from mayfly.fleet.wire import wire
from mayfly.host.snippet import Mode
from mayfly.runs.stdin import StdinWriter
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.unit.fleet.test_fleet import events, get, start, until_output

HEAD = Head(id="one", language="toy", version="1.0", mode=Mode.EVENTS, step_names=(), interactive=True)
ECHO = "while read line; do echo got $line; done; echo end"


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


async def send(way: Way, run_id: str, data: bytes, *, eof: bool = False) -> tuple[int, str]:
    """Type; the status, and the code of the error."""
    params = {"eof": "true"} if eof else {}
    async with way.client.post(f"/runs/{run_id}/stdin", data=data, params=params) as answer:
        return answer.status, "" if answer.status == 204 else (await answer.json())["error"]["code"]


async def ends(way: Way, run_id: str) -> tuple[str, str]:
    """How a run ends: its status, and what its last attempt put out."""
    await asyncio.wait_for(events(way.client, run_id), 30)
    found = await get(way.client, f"/runs/{run_id}")
    return found["status"], found["steps"][-1]["stdout"]


def test_another_attempt_gets_what_was_typed_at_all_gateways_in_the_same_order() -> None:
    """Also at one that has gone, and one that came again by its name."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g2") as two:
            async with fleet.gateway("g1") as one:
                ids = [await start(one.client, ECHO, interactive=True) for _ in range(2)]
                for number in range(6):
                    assert await send((one, two)[number % 2], ids[0], b"%d\n" % number) == (204, "")
                    assert await send(one, ids[1], b"%d\n" % number) == (204, "")
                for run_id in ids:
                    await until_output(one, run_id, "got 5")
            async with fleet.gateway("g1") as again:
                for run_id in ids:
                    assert await send(again, run_id, b"6\n") == (204, "")
                    await until_output(again, run_id, "got 6")
            await fleet.add_host("h2")
            await fleet.until_hosts(two, 2)
            await fleet.remove_host("h1")
            lines = [*(f"got {number}\n" for number in range(7)), "got last\n", "end\n"]
            for run_id in ids:
                assert await send(two, run_id, b"last\n", eof=True) == (204, "")
                assert await ends(two, run_id) == ("ok", "".join(lines))

    in_fleet(scenario, limit_s=120)


def test_the_terminal_of_another_attempt_has_the_size_that_it_got_last() -> None:
    """Also if the gateway where it was resized has gone."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g2") as two:
            async with fleet.gateway("g1") as one:
                source = "echo ready; while read line; do stty size; done"
                run_id = await start(one.client, source, tty={"columns": 80, "rows": 24})
                await until_output(one, run_id, "ready")
                for columns in (90, 100):
                    async with one.client.post(f"/runs/{run_id}/resize", json={"columns": columns, "rows": 30}) as answer:
                        assert answer.status == 204, await answer.text()
                await until_output(two, run_id, "ready")
            await fleet.add_host("h2")
            await fleet.until_hosts(two, 2)
            await fleet.remove_host("h1")
            run = await two.runner.find(run_id)
            async with asyncio.timeout(30):
                while b"30 100" not in run.record.output(1)[0]:
                    assert await send(two, run_id, b"x\n") == (204, "")
                    await asyncio.sleep(0.2)
            async with two.client.delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204

    in_fleet(scenario, limit_s=80)


def test_a_run_that_got_more_than_is_kept_has_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever gateway knows: nobody takes what lacks some of it for the result."""
    monkeypatch.setattr(typed_module, "KEPT", 1000)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g2") as two:
            async with fleet.gateway("g1") as one:
                ids = [await start(two.client, ECHO, interactive=True) for _ in range(3)]
                for run_id in ids:
                    for number, way in enumerate((one, two, one, one, two, one)):
                        assert await send(way, run_id, b"%d" % number * 300 + b"\n") == (204, "")
                        await until_output(two, run_id, f"got {number}")
                assert await send(two, ids[0], b"", eof=True) == (204, "")
                whole = "".join(f"got {str(number) * 300}\n" for number in range(6))
                assert await ends(two, ids[0]) == ("ok", f"{whole}end\n")
            async with two.client.delete(f"/runs/{ids[1]}") as answer:
                assert answer.status == 204
            await fleet.add_host("h2")
            await fleet.until_hosts(two, 2)
            await fleet.remove_host("h1")
            await asyncio.wait_for(events(two.client, ids[2]), 30)
            found = await get(two.client, f"/runs/{ids[2]}")
            assert (found["status"], found["error"]["code"]) == ("error", "host_failed"), found

    in_fleet(scenario, limit_s=120)


def test_input_that_has_ended_at_one_gateway_has_ended_at_all() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            run_id = await start(one.client, "cat; sleep 600", interactive=True)
            assert await send(two, run_id, b"typed\n", eof=True) == (204, "")
            assert await send(one, run_id, b"more\n") == (409, "stdin_ended")
            assert await send(one, run_id, b"", eof=True) == (409, "stdin_ended")
            await until_output(one, run_id, "typed")
            async with one.client.delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204

    in_fleet(scenario)


@pytest.mark.parametrize("last", [False, True])
def test_what_is_kept_while_a_host_begins_comes_to_it_once(last: bool) -> None:
    """Who keeps it is taken away before he hears that it is: the first bytes, or the end."""

    class Slow:
        """A bucket that never says what it has done."""

        def __init__(self, bucket: Bucket) -> None:
            self.get = bucket.get
            self.stored, self._update, self._left = asyncio.Event(), bucket.update, 1 + last

        async def update(self, key: str, value: bytes, revision: int) -> int:
            answer = await self._update(key, value, revision)
            self._left -= 1
            if not self._left:
                self.stored.set()
                await asyncio.Event().wait()
            return answer

    class Host:
        """An engine over which a host takes input."""

        name = "g1"

        def __init__(self) -> None:
            self.told: list[Input] = []

        async def ask(self, subject: str, data: bytes, timeout_s: float) -> bytes:
            self.told.append(decode(data, type=ToHost))
            return encode(Answer())

    async def nowhere() -> None:
        pytest.fail("the run has not moved")

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way:
            bucket, host = Slow(way.runner._registry), Host()
            follow = Follow(make_run(HEAD), Registered(head=HEAD, token="t", gateway="g1", arch="x", lang="toy"))
            typing = Typing(cast(Any, host), cast(Any, bucket), follow, nowhere)
            tasks = Tasks()
            typing.begin(tasks.spawn)
            with StdinWriter(follow.run.stdin) as writer:
                await writer.write(b"typed")
                writer.end()
            await bucket.stored.wait()
            follow.mirror.host = "h1"
            follow.begun.set()
            typing.begin(tasks.spawn)
            await follow.run.stdin.kept()
            await until(lambda: bool(host.told) and host.told[-1].end)
            assert b"".join(one.data for one in host.told) == b"typed"
            await tasks.close()

    in_fleet(scenario)


class Taking:
    """An engine over which a host takes input as hosts do, or answers with an error."""

    name = "g1"

    def __init__(self) -> None:
        self.got, self.asked = b"", 0
        self.error: MayflyError | None = None

    async def ask(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """As an engine has it."""
        said = decode(data, type=ToHost)
        assert isinstance(said, Input)
        self.asked += 1
        if (error := self.error) is None and said.offset > len(self.got):
            error = RequestError("input is lacking")
        if error is None:
            self.got += said.data[len(self.got) - said.offset :]
        return encode(Answer(error=wire(error)))


def typing_at(host: Taking, bucket: Bucket) -> tuple[Follow, Typing]:
    """A run that a host has begun, and who takes there what is typed."""

    async def nowhere() -> None:
        pytest.fail("the run has not moved")

    follow = Follow(make_run(HEAD), Registered(head=HEAD, token="t", gateway="g1", arch="x", lang="toy"))
    follow.mirror.host = "h1"
    follow.begun.set()
    return follow, Typing(cast(Any, host), bucket, follow, nowhere)


def test_another_attempt_of_which_nothing_was_heard_yet_gets_all_that_was_typed() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way:
            host, tasks = Taking(), Tasks()
            follow, typing = typing_at(host, way.runner._registry)
            typing.begin(tasks.spawn)
            with StdinWriter(follow.run.stdin) as writer:
                await writer.write(b"one ")
                await until(lambda: host.got == b"one ")
                host.got = b""
                await writer.write(b"two")
                await until(lambda: host.got == b"one two")
            await tasks.close()

    in_fleet(scenario)


@pytest.mark.parametrize("over", [False, True])
def test_who_types_is_told_that_the_host_takes_no_more(over: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Unless it is over there: another attempt may begin, and get it."""

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way:
            host, tasks = Taking(), Tasks()
            host.error = RunEndedError("over") if over else HostError("broken")
            follow, typing = typing_at(host, way.runner._registry)
            typing.begin(tasks.spawn)
            with StdinWriter(follow.run.stdin) as writer:
                await writer.write(b"one ")
                await until(lambda: "takes no more" in caplog.text)
                if over:
                    await writer.write(b"two")
                    await follow.run.stdin.kept()
                    assert host.asked == 1
                    host.error = None
                    typing.begin(tasks.spawn)
                    await until(lambda: host.got == b"one two")
                else:
                    with pytest.raises(HostError, match="broken"):
                        await writer.write(b"two")
                        await follow.run.stdin.kept()
            await tasks.close()

    in_fleet(scenario)


class Unheard:
    """A bucket that now and then is not asked, or whose answer is lost."""

    def __init__(self, bucket: Bucket, random: random.Random) -> None:
        self._bucket, self._random = bucket, random

    async def get(self, key: str) -> Entry | None:
        """As a bucket has it."""
        return await self._bucket.get(key)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """As a bucket has it, but for the answer."""
        if self._random.random() < 0.2:
            raise SilenceError("not asked")
        answer = await self._bucket.update(key, value, revision)
        if self._random.random() < 0.2:
            raise SilenceError("not heard")
        return answer


def test_a_chunk_names_those_who_added_to_it_or_the_one_before() -> None:
    """Who did not hear that it had added, and comes back later, adds nothing twice."""

    class Lost:
        """A bucket whose answers are lost."""

        def __init__(self, bucket: Bucket) -> None:
            self.get, self._bucket = bucket.get, bucket

        async def update(self, key: str, value: bytes, revision: int) -> int:
            if await self._bucket.update(key, value, revision):
                raise SilenceError("not heard")
            return 0

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way:
            bucket = way.runner._registry
            registered = Registered(head=HEAD, token="t", gateway="g1", arch="x", lang="toy")
            for _ in range(20):
                assert await Typed(bucket, registered).add(b".")
            unheard, typed = Typed(cast(Any, Lost(bucket)), registered), Typed(bucket, registered)
            with pytest.raises(SilenceError):
                await unheard.add(b"once")
            for _ in range(4):
                assert await typed.add(b"-" * CHUNK)
            assert await unheard.add(b"once")
            assert (unheard.data, typed.data.count(b"once")) == (typed.data, 1)
            named = []
            for number in range(4):
                entry = await bucket.get(f"typed.one.t.{number}")
                assert entry is not None
                named.append(len(decode(entry.value, type=Chunk).by))
            assert named == [22, 22, 1, 1]

    in_fleet(scenario)


def test_what_several_add_at_once_has_one_order() -> None:
    """Nothing of it is lost or comes twice, though answers are lost; then nothing is left."""

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way:
            bucket = way.runner._registry
            registered = Registered(head=HEAD, token="t", gateway="g1", arch="x", lang="toy")
            source = random.Random(18)
            sizes = (1, 10, 500)
            said = {who: [b"%d-%d " % (who, number) * source.choice(sizes) for number in range(30)] for who in range(3)}
            everybody = [Typed(cast(Any, Unheard(bucket, random.Random(who))), registered) for who in said]

            async def add(typed: Typed, data: bytes) -> bool:
                while True:
                    try:
                        return await typed.add(data)
                    except SilenceError:
                        await typed.look()

            async def add_all(who: int) -> None:
                for data in said[who]:
                    assert await add(everybody[who], data)

            await asyncio.gather(*map(add_all, said))
            assert await add(everybody[0], b"")
            for typed in everybody[1:]:
                assert not await add(typed, b"late")
            before = [await bucket.get(f"typed.one.t.{number}") for number in (0, 1)]
            await way.runner._follows.renew(registered, Entry(b"", 1))
            for number, entry in enumerate(before):
                after = await bucket.get(f"typed.one.t.{number}")
                assert entry and after and (after.value, after.revision > entry.revision) == (entry.value, True)
            last = Typed(bucket, registered)
            await last.look()
            assert len(last.data) > 5 * CHUNK
            for typed in everybody:
                assert typed.data == last.data
            for who, pieces in said.items():
                words = [word for word in last.data.split() if word.startswith(b"%d-" % who)]
                assert words == b"".join(pieces).split()
            assert last.ended
            await last.forget()
            nothing = Typed(bucket, registered)
            await nothing.look()
            assert not nothing.data

    in_fleet(scenario)
