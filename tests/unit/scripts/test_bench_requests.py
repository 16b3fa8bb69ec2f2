"""What measures a request's own cost: it measures, and leaves nothing."""

import pytest

from scripts.bench import requests


@pytest.mark.usefixtures("no_leaks")
def test_it_measures() -> None:
    found = requests.measure(requests=20, clients=4)
    assert [(load["clients"], load["requests"], len(load["ms"])) for load in found["loads"]] == [(1, 20, 20), (4, 20, 20)]
    assert all(0 < load["p50_ms"] <= load["p99_ms"] for load in found["loads"])
