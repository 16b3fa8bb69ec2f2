"""What the tests of each contract stand on."""

from collections.abc import Callable, Iterator

import pytest

from mayfly.api.compat.dialects import DIALECTS
from tests.kit.compat_server import Compatible, compatible, install_languages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Compatible]]:
    """A server of all contracts: what makes clients of it."""
    folder = tmp_path_factory.mktemp("compat")
    with pytest.MonkeyPatch.context() as patch:
        install_languages(patch, folder)
        with compatible(folder, compat=tuple(DIALECTS), callback_hosts=("127.0.0.1",)) as make:
            yield make


@pytest.fixture
def served(server: Callable[[], Compatible]) -> Iterator[Compatible]:
    """A client of that server."""
    with server() as client:
        yield client
