"""A server of others' contracts for their published clients, which wait: it runs in a thread, and
its machines are ordinary processes.
"""

import asyncio
import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import requests

from mayfly.images import manifest
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from tests.kit.api_fakes import install, install_toys
from tests.kit.api_server import Served, make_key, serving


class Compatible(requests.Session):
    """A client of a server that runs. Its requests have paths in place of URLs, and a key's
    `token`. `loop` is the server's.
    """

    def __init__(self, url: str, service: Service, loop: asyncio.AbstractEventLoop, token: str) -> None:
        super().__init__()
        self.loop = loop
        self.url = url
        self.service = service
        self.token = token
        self._before = {run.id for run in service.runs}
        self.headers["Authorization"] = f"Bearer {token}"

    def request(self, method: str, url: str, *args: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        """Send a request to a path."""
        return super().request(method, self.url + url, *args, **{"timeout": 60, **options})

    def runs(self) -> list[Run]:
        """The runs that began after this client was made."""
        return [run for run in self.service.runs if run.id not in self._before]


def install_languages(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The toys, `python` of two versions, and shells by the name of `rust`, `c` and `cpp`."""
    install_toys(monkeypatch, folder)
    check = manifest.LanguageStep(name="build", argv=(sys.executable, "-m", "py_compile", "main.py"))
    run = manifest.LanguageStep(name="run", argv=(sys.executable, "-I", "-u", "main.py", "{args}"), stdin=True)
    install("python", ".py", (check, run), version="3.13")
    install("python", ".py", (check, run), version="3.9.2", folder="python@3.9")
    for name, extension in (("rust", ".rs"), ("c", ".c"), ("cpp", ".cpp")):
        build = manifest.LanguageStep(name="build", argv=("sh", "-n", f"main{extension}"))
        run = manifest.LanguageStep(name="run", argv=("sh", f"main{extension}", "{args}"), stdin=True)
        install(name, extension, (build, run), version="1.85.1")


@contextlib.contextmanager
def compatible(folder: Path, **changes: Any) -> Iterator[Callable[[], Compatible]]:
    """Serve until the block is left; gives what makes clients, each with a key of its own."""
    ready: Future[tuple[Served, asyncio.AbstractEventLoop]] = Future()
    stop = asyncio.Event()

    async def scenario(served: Served) -> None:
        ready.set_result((served, asyncio.get_running_loop()))
        await stop.wait()

    def work() -> None:
        try:
            serving(folder, scenario, limit_s=600, **changes)
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        served, loop = ready.result()
        numbers = itertools.count()
        yield lambda: Compatible(served.url, served.service, loop, make_key(f"tests-{next(numbers)}"))
        loop.call_soon_threadsafe(stop.set)
    finally:
        thread.join()
