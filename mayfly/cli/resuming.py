"""`mayfly resume FILE --to ADDRESS`: a program goes on at another server, whose output and input
are those of the command.
"""

import asyncio
import contextlib
import sys
from pathlib import Path

from mayfly.cli.descriptors import FdStdin, FdWriter
from mayfly.cli.messages import report
from mayfly.cli.sources import read_source
from mayfly.client.asynchronous import AsyncAttachment, AsyncClient
from mayfly.client.results import ErrorEvent, StderrEvent, StdoutEvent

PIECE = 32 * 1024
LANGUAGE = "wasm"


async def resume_at(path: Path, address: str, certificates: Path | None) -> int:
    """Let the program of a checkpoint go on at the server; its exit status. The run is ended if the
    caller is cancelled.

    Raises:
        HostError: the file cannot be read.
        MayflyError: the server refuses it, or cannot be reached.
    """
    state = read_source(path)
    async with AsyncClient(address, certificates=certificates) as client, client.start(state, language=LANGUAGE, interactive=True) as run:
        print(f"mayfly: run {run.id} at {address}", file=sys.stderr)
        async with run.attach() as attached:
            feeding = asyncio.create_task(_feed(attached))
            try:
                await _show(attached)
            finally:
                feeding.cancel()
                await asyncio.wait([feeding])
        return (await run.result()).exit_status or 0


async def _feed(attached: AsyncAttachment) -> None:
    """Send what comes on standard input, to its end."""
    stdin = FdStdin(0)
    with contextlib.suppress(OSError):  # the run is over
        while data := await stdin.read(PIECE):
            await attached.send(data)
        await attached.send_eof()


async def _show(attached: AsyncAttachment) -> None:
    """Pass the output on, to the end of the run."""
    stdout, stderr = FdWriter(1), FdWriter(2)
    async for event in attached:
        match event:
            case StdoutEvent():
                await stdout.write(event.data)
            case StderrEvent():
                await stderr.write(event.data)
            case ErrorEvent():
                report(event.error)
