"""Files of requests, a line of JSON each, as SnapFaaS has them (mayfly/functions/lines.py); the
answers are lines too. Each request is sent at its time, and answers are written as they come, by
one writer.
"""

import asyncio
import collections
from collections.abc import Callable
from typing import BinaryIO

from mayfly.functions.lines import AnswerLine, BadLine, read_lines
from mayfly.functions.openloop import Invoke, send_all
from mayfly.schema import msgspec


async def replay(source: BinaryIO, invoke: Invoke, answers: BinaryIO, on_bad: Callable[[BadLine], None]) -> collections.Counter[str]:
    """Send the requests of `source`, write the answers, and return when all are written: how many
    there are of each status. A line that is not a request is told to `on_bad` and skipped.

    Raises:
        OSError: the source cannot be read, or the answers cannot be written.
    """
    counts: collections.Counter[str] = collections.Counter()
    written: asyncio.Queue[AnswerLine | None] = asyncio.Queue()

    def write(answer: AnswerLine) -> None:
        counts[answer.status] += 1
        written.put_nowait(answer)

    sending = asyncio.create_task(send_all(read_lines(source, on_bad), invoke, write, keep_payloads=True), name="send the requests")
    writing = asyncio.create_task(_write(written, answers), name="write the answers")
    try:
        await asyncio.wait([sending, writing], return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            written.put_nowait(None)
            await asyncio.gather(sending, writing)
        await writing  # it has failed
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        written.put_nowait(None)  # those that were interrupted stand before it
        await asyncio.wait([writing])
    return counts


async def _write(ready: asyncio.Queue[AnswerLine | None], answers: BinaryIO) -> None:
    """Write answers as they come, those that are there together, to the None behind them."""
    last = False
    while not last:
        batch = [await ready.get()]
        while not ready.empty():
            batch.append(ready.get_nowait())
        last = None in batch
        text = b"".join(msgspec.json.encode(answer) + b"\n" for answer in batch if answer is not None)
        await asyncio.to_thread(_write_all, answers, text)


def _write_all(answers: BinaryIO, text: bytes) -> None:
    answers.write(text)
    answers.flush()
