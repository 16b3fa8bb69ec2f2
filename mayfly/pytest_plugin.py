"""The fixture `mayfly` for pytest: a client of the server that --mayfly or MAYFLY_URL names.

def test_hello(mayfly):
    assert mayfly.run("print(42)", language="python").check().stdout.split() == ["42"]
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mayfly.client import Client


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--mayfly", metavar="ADDRESS", help="the Mayfly server of the fixture `mayfly`: a URL or a socket's path")


@pytest.fixture(scope="session")
def mayfly(request: pytest.FixtureRequest) -> "Iterator[Client]":
    """A client that runs snippets on a Mayfly server; one for all tests."""
    from mayfly.client import Client  # the client's libraries load only where a test uses it

    with Client(request.config.getoption("--mayfly")) as client:
        yield client
