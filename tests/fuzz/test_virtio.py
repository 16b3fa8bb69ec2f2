"""Invariant: whatever a guest writes, no exception, no access outside its RAM, no kick over 100 ms
of CPU, no growth over 1 MiB.
"""

import contextlib
import tracemalloc

import pytest

from tests.kit.scale import scaled
from tests.kit.virtio_fuzzer import FUZZERS, KICK_LIMIT_S, Fuzzer

CHAINS = 200_000
SEEDS = 8
GROWTH_CHAINS = 2_000
GROWTH_LIMIT = 1 << 20


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("device", sorted(FUZZERS))
def test_no_exception_and_no_slow_kick(device: str, seed: int) -> None:
    with contextlib.closing(FUZZERS[device](seed)) as fuzzer:
        while fuzzer.chains < scaled(CHAINS) // SEEDS:
            fuzzer.step()
    assert fuzzer.slowest < KICK_LIMIT_S
    assert fuzzer.driver.interrupts
    assert device != "plain-net" or (fuzzer.driver.device.pump and fuzzer.driver.device.pump.kicks)
    assert len(fuzzer.driver.transport.misuse) >= 10  # it got to many of the things that a guest can do wrong


@pytest.mark.parametrize("device", sorted(FUZZERS))
def test_no_growth(device: str) -> None:
    with contextlib.closing(FUZZERS[device](1)) as fuzzer:
        before, after, peak = traced(fuzzer)
    assert after - before < GROWTH_LIMIT
    assert peak - before < GROWTH_LIMIT


def traced(fuzzer: Fuzzer) -> tuple[int, int, int]:
    """Bytes before and after so many chains, and the most meanwhile."""
    while fuzzer.chains < GROWTH_CHAINS // 4:
        fuzzer.step()
    fuzzer.take_back()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        while fuzzer.chains < GROWTH_CHAINS:
            fuzzer.step()
        fuzzer.take_back()
        return before, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
