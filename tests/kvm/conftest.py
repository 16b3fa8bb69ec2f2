"""Machines that end with their test."""

from collections.abc import Iterator

import pytest

from tests.kit.tiny import Running


@pytest.fixture
def started() -> Iterator[list[Running]]:
    running: list[Running] = []
    yield running
    for one in running:
        one.close()
