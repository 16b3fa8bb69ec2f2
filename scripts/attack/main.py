"""Run hostile snippets on a server of their own, and write what became of them.

    python -m scripts.attack.main [--report FILE] [--minutes N] [NAME…]

Each snippet (snippets.py) runs through a real `mayfly serve` while a neighbour's small runs go on
beside it, whose latency is what the host felt. A snippet fails when it ends in another way than it
may, or says that something worked which must be refused. When all are done the server has to be
empty and to answer rightly. Those in a language without an image here, and those that have not
begun after N minutes, are named in the report.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import aiohttp

from mayfly import __version__
from mayfly.client import AsyncClient, Result
from mayfly.errors import RequestError
from mayfly.guests.probe import probe
from scripts.attack.snippets import ATTACKS, THROUGH, Attack

ALONE = 6
"""The neighbour's runs before the attacks, for comparison."""
NEIGHBOUR = "print(6 * 7)"
PATIENCE_S = 300.0
SAID = 200


class WrongError(Exception):
    """The server is not as it should be."""


class Row(NamedTuple):
    """What became of an attack: how it ended, why that is wrong if it is, and the seconds of each
    of the neighbour's runs beside it.
    """

    attack: Attack
    end: str
    wrong: str
    said: str
    seconds: float
    beside: Sequence[float]


def end_of(result: Result) -> str:
    """The status, and which limit it was."""
    limit = result.steps[-1].limit if result.steps else None
    return f"limit: {limit}" if result.status == "limit" else str(result.status)


def judge(attack: Attack, result: Result) -> str:
    """What is wrong with an attack's end; empty if nothing is."""
    through = [line for line in result.stdout.splitlines() if THROUGH in line]
    if through:
        return through[0][:SAID]
    if (end := end_of(result)) not in attack.ends:
        return f"{end} is none of {', '.join(sorted(attack.ends))}; {str(result.problem or result.stderr)[-SAID:]}"
    return ""


def gist(result: Result) -> str:
    """How many attempts were refused, or the end of what it said."""
    refused = sum(": refused (" in line for line in result.stdout.splitlines())
    if refused:
        return f"{refused} attempts refused"
    words = " ".join((result.stdout or result.stderr).split())
    return "".join(letter for letter in words[-60:] if letter.isprintable() and letter not in "|`<")


async def ask_neighbour(client: AsyncClient, source: str, language: str) -> float:
    """One run of the neighbour, which must be right; seconds."""
    began = time.monotonic()
    result = await client.run(source, language=language)
    if result.stdout != "42\n":
        raise WrongError(f"the neighbour's run came to {result.status}, {result.stdout!r}, {result.stderr[-SAID:]!r}, {result.problem}")
    return time.monotonic() - began


async def attack_once(client: AsyncClient, attack: Attack, source: str, language: str) -> Row:
    """One attack, beside which the neighbour's runs go on until its end, and one at least."""
    began = time.monotonic()
    running = asyncio.create_task(client.run(attack.source, language=attack.language, limits=attack.limits))  # type: ignore[arg-type]
    beside: list[float] = []
    try:
        while not running.done() or not beside:
            beside.append(await ask_neighbour(client, source, language))
        result = await running
    except RequestError as error:
        return Row(attack, "not taken", f"the server did not take it: {error.message}", "", time.monotonic() - began, beside)
    finally:
        running.cancel()
    return Row(attack, end_of(result), judge(attack, result), gist(result), time.monotonic() - began, beside)


async def empty(socket: Path) -> None:
    """Wait until the server has no machine left. Raises WrongError: it keeps one."""
    until = time.monotonic() + PATIENCE_S
    connector = aiohttp.UnixConnector(str(socket))
    async with aiohttp.ClientSession("http://mayfly", connector=connector) as session:
        while True:
            async with session.get("/healthz") as answer:
                health = await answer.json()
            if not health["memory_used"] and not health["waiting"]:
                return
            if time.monotonic() > until:
                raise WrongError(f"machines are left: {health}")
            await asyncio.sleep(0.1)


async def play(
    socket: Path,
    attacks: Sequence[Attack],
    *,
    minutes: float,
    source: str = NEIGHBOUR,
    language: str = "python",
) -> tuple[list[float], list[Row], dict[str, str]]:
    """All attacks against the server at `socket`: the neighbour's seconds before them, what became
    of each, and why some were not run. Raises WrongError.
    """
    until = time.monotonic() + 60 * minutes
    skipped: dict[str, str] = {}
    rows: list[Row] = []
    async with AsyncClient(socket, patience_s=PATIENCE_S) as client:
        there = {found.language for found in await client.languages()}
        if language not in there:
            raise WrongError(f"there is no image of {language}: make images python")
        await ask_neighbour(client, source, language)  # which makes the base, if there is none
        alone = [await ask_neighbour(client, source, language) for _ in range(ALONE)]
        for attack in attacks:
            if attack.language not in there:
                skipped[attack.name] = f"no image of {attack.language} here"
            elif time.monotonic() > until:
                skipped[attack.name] = f"{minutes:g} minutes were over"
            else:
                rows.append(await attack_once(client, attack, source, language))
                row = rows[-1]
                print(f"{'WRONG' if row.wrong else 'ok':5} {attack.name}: {row.end}, {row.seconds:.1f} s {row.wrong}", flush=True)
        await ask_neighbour(client, source, language)
    await empty(socket)
    return alone, rows, skipped


@contextlib.asynccontextmanager
async def server(folder: Path, *options: str) -> AsyncIterator[Path]:
    """A `mayfly serve`; its socket."""
    socket = folder / "api.sock"
    words = ["-P", "-m", "mayfly.cli.main", "serve", "--socket", str(socket), *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=asyncio.subprocess.PIPE, env=environment, cwd=folder)
    assert process.stderr is not None  # noqa: S101 (it was started with a pipe)
    try:
        while b"listening" not in (line := await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)):
            if not line:
                raise WrongError("the server did not come up")
            print(line.decode(), end="")
        reading = asyncio.create_task(process.stderr.read())
        yield socket
        process.terminate()
        if await asyncio.wait_for(process.wait(), PATIENCE_S):
            raise WrongError(f"the server ended with status {process.returncode}: {(await reading).decode()[-SAID:]}")
        await reading
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def percentile(seconds: Sequence[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] if len(seconds) > 1 else seconds[0]


def line_of(row: Row) -> str:
    """An attack's line of the table."""
    end = f"**wrong:** {row.wrong.replace('|', '/')}" if row.wrong else row.end
    felt = f"{max(row.beside):.2f} s of {len(row.beside)}"
    return f"| {row.attack.name} | {row.attack.tries} | {end} | {row.said} | {row.seconds:.1f} | {felt} |"


def report(alone: Sequence[float], rows: Sequence[Row], skipped: dict[str, str], where: str) -> str:
    """The page."""
    beside = [seconds for row in rows for seconds in row.beside]
    wrong = [row for row in rows if row.wrong]
    lines = [
        "# Attacks, and what became of them\n",
        f"{datetime.now(UTC):%Y-%m-%d}, Mayfly {__version__}, {platform.machine()}; written by `make attack`{where}.",
        f"{len(rows)} snippets ran, {len(rows) - len(wrong)} of them ended as they must.\n",
        "A neighbour's runs of a small Python program went on all the time, one after the other.\n",
        "| neighbour | runs | median | p99 | slowest |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {len(seconds)} | {statistics.median(seconds):.2f} s | {percentile(seconds, 99):.2f} s | {max(seconds):.2f} s |"
            for name, seconds in (("alone", alone), ("beside the attacks", beside))
            if seconds
        ),
        "\n| attack | it tries to | its end | it said | seconds | neighbour's slowest |",
        "|---|---|---|---|---|---|",
        *map(line_of, rows),
    ]
    if skipped:
        lines += ["\nNot run:\n", *(f"- {name}: {why}" for name, why in skipped.items())]
    return "\n".join(lines) + "\n"


async def run(arguments: argparse.Namespace) -> int:
    chosen = [attack for attack in ATTACKS if not arguments.names or attack.name in arguments.names]
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        async with server(Path(folder)) as socket:
            alone, rows, skipped = await play(socket, chosen, minutes=arguments.minutes)
    where = f", in an emulated host with {os.cpu_count()} processor" if probe().emulated else ""
    page = report(alone, rows, skipped, where)
    print(page)
    if arguments.report:
        arguments.report.write_text(page)
    return 1 if any(row.wrong for row in rows) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no attack later (default: %(default)g)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run these alone")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
