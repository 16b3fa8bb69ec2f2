"""A tenant's runs stay within its limits, and what it gives back is there again."""

import asyncio

import pytest

from mayfly.errors import BusyError, HostError, KeyLimitError, UnprocessableError
from mayfly.host import admission
from mayfly.host.admission import Admission, Tenant
from mayfly.units import MIB


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(admission, "time", clock)
    return clock


def begin(tenant: Tenant, memory: int = 128 * MIB) -> None:
    tenant.check(memory)
    tenant.take(memory)


def test_without_limits_there_are_none(clock: Clock) -> None:
    tenant = Tenant("a")
    for _ in range(1000):
        begin(tenant)
    assert tenant.runs == 1000


def test_rate_is_a_bucket_that_fills_again(clock: Clock) -> None:
    tenant = Tenant("a", rate=6)
    for _ in range(6):
        begin(tenant)
    with pytest.raises(KeyLimitError) as caught:
        begin(tenant)
    assert caught.value.retry_after_s == 10
    clock.now += 9
    with pytest.raises(KeyLimitError) as caught:
        begin(tenant)
    assert caught.value.retry_after_s == 1
    clock.now += 1
    begin(tenant)
    clock.now += 3600
    for _ in range(6):
        begin(tenant)
    with pytest.raises(KeyLimitError):
        begin(tenant)


def test_concurrency_and_memory_are_given_back(clock: Clock) -> None:
    tenant = Tenant("a", concurrency=3, memory=256 * MIB)
    begin(tenant)
    begin(tenant)
    with pytest.raises(KeyLimitError, match="256 of 256 MiB"):
        begin(tenant)
    tenant.give_back(128 * MIB)
    begin(tenant, 64 * MIB)
    begin(tenant, 32 * MIB)
    with pytest.raises(KeyLimitError, match="3 runs"):
        begin(tenant, 1)
    with pytest.raises(UnprocessableError, match="512 MiB"):
        begin(tenant, 512 * MIB)
    assert (tenant.runs, tenant.memory_used) == (3, 224 * MIB)


def test_a_ticket_that_is_left_pays_its_tenant_back() -> None:
    async def scenario() -> None:
        room, tenant = Admission(256 * MIB, queue=4), Tenant("a")
        tickets = [room.enter(128 * MIB) for _ in range(3)]
        for ticket in tickets:
            room.charge(ticket, tenant)
        assert (tenant.runs, tenant.memory_used, room.waiting) == (3, 384 * MIB, 1)
        for ticket in reversed(tickets):
            room.leave(ticket)
        assert (tenant.runs, tenant.memory_used, room.used) == (0, 0, 0)

    asyncio.run(scenario())


def test_several_give_back_memory_each_asked_for_what_is_still_lacking() -> None:
    async def scenario() -> None:
        room, asked = Admission(256 * MIB, queue=0), []

        def pool(missing: int) -> int:
            asked.append(("pool", missing))
            return 64 * MIB

        def functions(missing: int) -> int:
            asked.append(("functions", missing))
            return missing

        room.reclaimers += [pool, functions]
        ticket = room.enter(256 * MIB)
        assert asked == []
        waiting = room.enter(128 * MIB)  # although none may wait: its memory is on its way
        assert (waiting.covered, room.first_waiting) == (True, waiting)
        assert asked == [("pool", 128 * MIB), ("functions", 64 * MIB)]
        room.press()
        assert asked[2:] == asked[:2]
        room.leave(ticket)
        assert waiting.turn.done()
        room.press()
        assert len(asked) == 4
        room.leave(waiting)

    asyncio.run(scenario())


def test_who_lets_others_go_first_does_not_count_on_what_was_about_to_be_given_back() -> None:
    async def scenario() -> None:
        room = Admission(128 * MIB, queue=9)
        room.reclaimers.append(lambda missing: missing)
        held, mine, other = (room.enter(128 * MIB, of_run=False) for _ in range(3))
        assert (mine.covered, room.first_waiting) == (True, mine)
        room.date(mine, other.entered_at + 1)
        assert (mine.covered, room.first_waiting) == (False, other)
        for ticket in (held, mine, other):
            room.leave(ticket)

    asyncio.run(scenario())


def test_what_outlasts_runs_takes_no_place_among_those_that_wait() -> None:
    async def scenario() -> None:
        room = Admission(128 * MIB, queue=1)
        tickets = [room.enter(128 * MIB), *(room.enter(MIB, of_run=False) for _ in range(3))]
        assert (room.waiting, [ticket.covered for ticket in tickets]) == (0, [True, False, False, False])
        tickets.append(room.enter(MIB))
        with pytest.raises(BusyError, match="1 runs are waiting"):
            room.enter(MIB)
        for ticket in reversed(tickets):
            room.leave(ticket)
        assert (room.used, room.first_waiting) == (0, None)

    asyncio.run(scenario())


def test_who_wants_room_that_nobody_waits_for_is_told() -> None:
    async def scenario() -> None:
        room, told = Admission(128 * MIB, queue=1), []
        room.on_room.append(lambda: told.append(room.used))
        first, second = room.enter(128 * MIB), room.enter(64 * MIB)
        room.leave(first)
        room.leave(second)
        assert told == []  # not in the middle of somebody's work
        await asyncio.sleep(0)
        assert told == [0]

    asyncio.run(scenario())


def test_threads_are_counted_however_small_their_machines_are() -> None:
    async def scenario() -> None:
        room, asked = Admission(1024 * MIB, queue=1, most=5), []

        def pool(missing: int) -> int:
            asked.append(missing)
            return 0

        room.reclaimers.append(pool)
        first, idle = room.enter(64 * MIB), room.enter_idle(86 * MIB, 2)
        assert idle is not None
        assert room.enter_idle(MIB) is None
        waiting = room.enter(MIB)
        assert (waiting.turn.done(), room.machines, room.threads) == (False, 2, 5)
        assert asked == [60 * MIB]  # what two threads have of those that are there
        with pytest.raises(BusyError, match="1 runs are waiting"):
            room.enter(MIB)
        room.leave(idle)
        assert (waiting.turn.done(), room.threads) == (True, 4)
        wide = room.enter(MIB, 4)
        room.leave(first)
        assert not wide.turn.done()
        room.leave(waiting)
        assert wide.turn.done()
        room.leave(wide)
        assert (room.machines, room.threads, room.used) == (0, 0, 0)
        with pytest.raises(HostError, match="5 virtual CPUs has 6 threads"):
            room.enter(MIB, 5)

    asyncio.run(scenario())
