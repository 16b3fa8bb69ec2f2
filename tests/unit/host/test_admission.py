"""A tenant's runs stay within its limits, and what it gives back is there again."""

import asyncio

import pytest

from mayfly.errors import KeyLimitError, UnprocessableError
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
