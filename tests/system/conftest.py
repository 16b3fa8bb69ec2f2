"""What the files here share."""

from collections.abc import Iterator

import pytest

from mayfly import paths
from tests.kit import toy


@pytest.fixture(scope="module")
def toy_language(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data folder with this host's kernel, the toy language, and no images but those that tests
    make.
    """
    kernel = paths.data_dir() / "kernel"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        paths.data_dir().mkdir()
        (paths.data_dir() / "kernel").symlink_to(kernel)
        toy.build()
        yield
