"""`mayfly workload`: make a workload of functions, send it, report what came back."""

import asyncio
import contextlib
import functools
import json
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from mayfly.cli.flags import OF_SERVER, Configured, load_config
from mayfly.cli.messages import plain
from mayfly.errors import ConfigError
from mayfly.functions.lines import BadLine
from mayfly.functions.openloop import ANSWER_S, MOST_UNDER_WAY
from mayfly.host.config import Config
from mayfly.workload.replay import Progress, ServerTarget, Target, replay
from mayfly.workload.report import WINDOW_S

STOPPING = (signal.SIGINT, signal.SIGTERM)
SHOWN_BAD = 20
"""Lines of a file that are named; of further ones only their number is."""
_OUTPUT = click.Path(dir_okay=False, path_type=Path, allow_dash=True)


@click.group()
def cli() -> None:
    """Make a workload of functions, send it to a server, and report what came back."""


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="another one gives another workload; the same one the same"
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="end after so many seconds instead of the file's end_time")
@click.option("--output", "-o", type=_OUTPUT, default="-", help="file for the requests (default: standard output)")
def generate(spec: Path, seed: int, seconds: float | None, output: Path) -> None:
    """Make the requests of the workload that SPEC, a file of YAML, describes, as lines of JSON."""
    from mayfly.schema import replace
    from mayfly.workload.generate import as_line, load_spec
    from mayfly.workload.generate import generate as requests_of

    wanted = load_spec(spec)
    if seconds is not None:
        wanted = replace(wanted, end_time=wanted.start_time + max(1, round(seconds * 1000)))
    count = 0
    with _writing(output) as file:
        for request in requests_of(wanted, seed):
            file.write(as_line(request) + b"\n")
            count += 1
    click.echo(f"{count} requests", err=True)


@cli.command("replay", cls=Configured, without=OF_SERVER)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--against",
    default="",
    metavar="ADDRESS",
    help="http(s)://HOST:PORT, or the path of a server's socket (default: as MAYFLY_URL says, or the local server's)",
)
@click.option("--in-process", is_flag=True, help="ask no server, but functions in guests of this process")
@click.option("--output", "-o", type=_OUTPUT, default="-", help="file for the answers (default: standard output)")
@click.option("--speed", type=click.FloatRange(0.001, 1000), default=1.0, show_default=True, help="2 sends everything in half the time")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 100_000),
    default=MOST_UNDER_WAY,
    show_default=True,
    help="most requests under way at a time; one beyond them is not sent",
)
@click.option(
    "--timeout", type=click.FloatRange(0.001, 86400), default=ANSWER_S, show_default=True, help="seconds for which an answer is waited for"
)
def replay_command(
    file: Path, against: str, in_process: bool, output: Path, speed: float, in_flight: int, timeout: float, **flags: Any
) -> int:
    """Send the requests in FILE, each at its time, whether or not earlier ones are answered.

    The answers come as lines of JSON, in the order in which they are there. Lines of FILE that are
    not requests are named and skipped. Ctrl-C ends it; what is known then is written. A key for a
    server over TCP: MAYFLY_KEY. The flags of the configuration are for --in-process.
    """
    if in_process and against:
        raise click.UsageError("give either --against or --in-process")
    config = load_config(flags) if in_process else None
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each request under way

    async def work(requests: BinaryIO, answers: BinaryIO) -> int:
        loop = asyncio.get_running_loop()
        stop = functools.partial(_stop, loop, asyncio.current_task(loop))
        for number in STOPPING:
            loop.add_signal_handler(number, stop)
        async with _target(config, against) as target:
            with _showing(file) as progress, _naming_bad() as on_bad:
                try:
                    await replay(requests, target, answers, on_bad, progress, most=in_flight, timeout_s=timeout, speed=speed)
                except asyncio.CancelledError:
                    click.echo("interrupted; what was known is written", err=True)
                    return 130
        return 0

    with _reading(file) as requests, _writing(output) as answers:
        return asyncio.run(work(requests, answers))


@cli.command("report")
@click.argument("outputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=_OUTPUT, help="file for the report as JSON; -: standard output")
@click.option("--plot", "picture", type=click.Path(dir_okay=False, path_type=Path), help="file for the plots, as PNG")
@click.option(
    "--window", type=click.FloatRange(0.01, 86400), default=WINDOW_S, show_default=True, help="seconds over which throughput is taken"
)
def report_command(outputs: tuple[Path, ...], json_file: Path | None, picture: Path | None, window: float) -> None:
    """Report experiments: success, latencies, throughput, guests created and evicted.

    Each of OUTPUTS is one experiment: the answers that `replay` or a file's gateway wrote, or a
    folder of *.jsonl (answers) and *.stat (statistics, as SnapFaaS has them too). Several are
    compared by the memory that their guests might have.
    """
    from mayfly.workload.outcome import load_all
    from mayfly.workload.report import report, table

    outcomes = load_all(outputs)
    found = report(outcomes, window)
    if picture:
        from mayfly.workload.plot import plot

        plot(outcomes, picture, window)
    if json_file:
        with _writing(json_file) as file:
            file.write(json.dumps(found, indent=1).encode() + b"\n")
    if json_file != Path("-"):
        click.echo(plain(table(found)))


@contextlib.asynccontextmanager
async def _target(config: Config | None, address: str) -> AsyncIterator[Target]:
    """The server at the address, or functions in guests of this process as `config` says."""
    if config is None:
        from mayfly.client import AsyncClient

        async with AsyncClient(address or None, patience_s=0) as client:
            yield ServerTarget(client)
        return
    from mayfly.cli.function import functions_here
    from mayfly.workload.here import HereTarget

    async with functions_here(config) as functions:
        yield HereTarget(functions)


def _stop(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[int] | None") -> None:
    """End a replay; who asks once more does not wait for what it has to write."""
    for number in STOPPING:
        loop.remove_signal_handler(number)
    if task is not None:
        task.cancel()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    if path == Path("-"):
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}", hint="give a file of requests, as `mayfly workload generate` makes it"
        ) from error
    with file:
        yield file


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """The file, or standard output. What is written is there line by line."""
    if path == Path("-"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with path.open("wb") as file:
        yield file


@contextlib.contextmanager
def _naming_bad() -> Iterator[Callable[[BadLine], None]]:
    """Names lines that are skipped, as they come."""
    count = 0

    def on_bad(line: BadLine) -> None:
        nonlocal count
        count += 1
        if count <= SHOWN_BAD:
            click.echo(plain(f"line {line.number} is skipped: {line.message}"), err=True)

    yield on_bad
    if count > SHOWN_BAD:
        click.echo(f"{count - SHOWN_BAD} more lines were skipped", err=True)


@contextlib.contextmanager
def _showing(file: Path) -> Iterator[Progress]:
    """Shows on a terminal how far a replay is."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    import rich.console
    import rich.progress

    columns = (
        rich.progress.BarColumn(),
        rich.progress.TextColumn(
            "{task.fields[done].requests} sent, {task.fields[done].answered} answered, {task.fields[done].ok} ok", markup=False
        ),
        rich.progress.TimeElapsedColumn(),
    )
    total = file.stat().st_size if file.is_file() else None
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bars:
        bar = bars.add_task("", total=total, done=Progress())
        yield Progress(lambda done: bars.update(bar, completed=done.bytes_read, done=done))
