"""`mayfly function`: create functions, look at them, have them answer requests."""

import asyncio
import json
import socket
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from mayfly.cli.asking import ask
from mayfly.cli.flags import OF_SERVER, Configured, load_config
from mayfly.cli.fleet import Where, of_fleet
from mayfly.cli.messages import plain
from mayfly.functions import store
from mayfly.functions.lines import BadLine, RequestLine
from mayfly.functions.making import forget_snapshots
from mayfly.functions.openloop import Invoke, Reply, in_process
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec, fields_of, load_specs
from mayfly.functions.store import Function
from mayfly.gateways.lines import replay
from mayfly.guests.zygote import Zygote
from mayfly.host.checks import time_factor
from mayfly.host.config import Config
from mayfly.runs.service import Service
from mayfly.schema import replace

WITHOUT = tuple(name for name in OF_SERVER if name != "socket")


@click.group()
def cli() -> None:
    """Create functions: code that stays loaded in guests and answers many requests.

    A running server serves every function of its user, also those that are created meanwhile. With
    --fleet they are those of a whole fleet, whose gateways answer requests to them.
    """


@cli.command(cls=Configured, without=WITHOUT)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
@of_fleet
def create(file: Path, names: tuple[str, ...], fleet: Where | None, **flags: Any) -> None:
    """Create the functions that FILE describes, or those NAMES of them.

    Each one's code is built and loaded in a guest, which is saved: later ones start from there. A
    function of the same name is replaced.
    """
    specs = load_specs(file)
    unknown = set(names) - {spec.name for spec in specs}
    if unknown:
        raise click.BadParameter(f"{file} has no function {min(unknown)!r}", param_hint="NAMES")
    if fleet is not None:
        for spec in specs:
            if not names or spec.name in names:
                click.echo(_line(_create_there(fleet, spec)))
        return
    config = load_config(flags)

    async def whole() -> None:
        async with functions_here(config) as functions:
            for spec in specs:
                if not names or spec.name in names:
                    click.echo(_line(await functions.create(spec)))

    asyncio.run(whole())


def _create_there(fleet: Where, spec: FunctionSpec) -> Function:
    """Have a host of the fleet build and load a function, and all gateways know it."""
    from mayfly.fleet.functions import creating
    from mayfly.fleet.functions.messages import Change

    code = store.read_code(Path(spec.code), "")
    change = Change(spec=msgspec.json.encode(fields_of(replace(spec, code="fleet"))), code=code)
    made = fleet.ask(lambda engine: creating.change(engine, change))
    return next(each.function for each in made if each.name == spec.name)


def _change_there(fleet: Where, remove: str = "") -> list[Function]:
    """Remove a function of a fleet, if one is named; those that it has then."""
    from mayfly.fleet.functions import creating
    from mayfly.fleet.functions.messages import Change
    from mayfly.fleet.shared import readable

    made = fleet.ask(lambda engine: creating.change(engine, Change(remove=remove)))
    return [each.function for each in readable(made, lambda each: each.function)]


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
@of_fleet
def list_functions(as_json: bool, fleet: Where | None) -> None:
    """List the functions."""
    found = _change_there(fleet) if fleet else store.installed()
    if as_json:
        click.echo(json.dumps([_facts(function) for function in found]))
        return
    for function in found:
        click.echo(_line(function))


@cli.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def inspect(name: str, as_json: bool) -> None:
    """Show what the function NAME is."""
    facts = _facts(store.find(name))
    if as_json:
        click.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        click.echo(f"{key:<17} {value}")


@cli.command(cls=Configured, without=WITHOUT)
@click.argument("name", required=False)
@click.option("--data", "-d", default=None, help="the payload; @FILE: what the file holds; without it: standard input")
@click.option("--file", "requests", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="send this file's requests instead")
@click.option("--verbose", "-v", is_flag=True, help="say on standard error how the guest was got and how long it took")
def invoke(name: str | None, data: str | None, requests: Path | None, verbose: bool, **flags: Any) -> int:
    """Have the function NAME answer a payload of JSON, and print the answer.

    The server at --socket is asked, if one listens there; else a guest is started here. With --file
    each line of that file is a request, {"time": milliseconds, "function", "payload"}, sent at its
    time; the answers are lines of JSON. Exit status: 1 if anything was not answered, or raised.
    """
    if (name is None) == (requests is None):
        raise click.UsageError("give the NAME of a function, or a --file of requests")
    config = load_config(flags)
    if requests is not None:
        with requests.open("rb") as file:
            return asyncio.run(_replay(file, config))
    request = RequestLine(function=str(name), payload=msgspec.Raw(_payload(data)))

    async def whole() -> Reply:
        async with _somewhere(config) as invoke:
            return await invoke(request)

    return _show(asyncio.run(whole()), verbose)


@cli.command(cls=Configured, without=WITHOUT)
@click.argument("name")
@click.option("--last", type=click.IntRange(1, 1000), default=100, show_default=True, help="so many lines, the latest ones")
@click.option("--json", "as_json", is_flag=True, help="print them as JSON, one a line")
def logs(name: str, last: int, as_json: bool, **flags: Any) -> None:
    """Show what the function NAME printed on the server at --socket, and in which request."""
    config = load_config(flags)
    for line in ask(config.socket, "GET", f"/functions/{urllib.parse.quote(name, safe='')}/logs?last={last}")["lines"]:
        if as_json:
            click.echo(json.dumps(line))
        else:
            at = time.strftime("%H:%M:%S", time.localtime(line["at"]))
            click.echo(f"{at} {line['request_id'][:8] or '-':<8} {plain(line['text'])}")


@cli.command()
@click.argument("names", nargs=-1, required=True)
@of_fleet
def rm(names: tuple[str, ...], fleet: Where | None) -> None:
    """Remove the functions NAMES, and what was saved of them."""
    for name in names:
        if fleet is not None:
            _change_there(fleet, name)
        else:
            store.remove(name)
            forget_snapshots(name)


@asynccontextmanager
async def functions_here(config: Config) -> AsyncIterator[Functions]:
    """Functions in guests of this process."""
    config = config.scaled(time_factor(config))
    async with (
        Service(config, Zygote.start) as one,
        Functions(one.config, one.spawner, one.admission, one.supply, one.images, one.networks, one.observer) as functions,
    ):
        yield functions


@asynccontextmanager
async def _somewhere(config: Config) -> AsyncIterator[Invoke]:
    """Functions of the server, if one listens, else in guests of this process."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(config.socket))
            listens = True
        except OSError:
            listens = False
    if not listens:
        async with functions_here(config) as functions:
            yield in_process(functions)
        return
    from mayfly.client import AsyncClient
    from mayfly.workload.replay import ServerTarget

    async with AsyncClient(config.socket, patience_s=0) as client:
        yield ServerTarget(client).send


async def _replay(file: BinaryIO, config: Config) -> int:
    """Send a file's requests; the exit status."""
    bad = 0

    def on_bad(line: BadLine) -> None:
        nonlocal bad
        bad += 1
        click.echo(f"line {line.number} is skipped: {plain(line.message)}", err=True)

    async with _somewhere(config) as invoke:
        counts = await replay(file, invoke, sys.stdout.buffer, on_bad)
    what = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    click.echo(f"{counts.total()} requests: {what or 'none'}; {bad} lines skipped", err=True)
    return 0 if counts.total() == counts["ok"] and not bad else 1


def _show(reply: Reply, verbose: bool) -> int:
    """Print an answer; the exit status."""
    if verbose:
        times = f"waited {reply.queued_ms:.1f} ms, took {reply.guest_ms:.1f} ms"
        click.echo(f"request {reply.id}: {reply.status}, {reply.start}, {times}", err=True)
    if reply.status == "ok":
        sys.stdout.buffer.write(reply.payload)
        if sys.stdout.isatty() and not reply.payload.endswith(b"\n"):
            click.echo()
        return 0
    try:
        raised = json.loads(reply.payload)
        text = f"{raised['trace']}".rstrip() or f"{raised['error']}: {raised['message']}"
    except (ValueError, LookupError, TypeError):
        text = reply.payload.decode(errors="replace")
    click.echo(plain(text), err=True)
    return 1


def _payload(data: str | None) -> bytes:
    """The payload that the command line gives."""
    if data is None:
        return sys.stdin.buffer.read()
    return Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()


def _facts(function: Function) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(function)
    return {**found.pop("spec"), **found}


def _line(function: Function) -> str:
    spec = function.spec
    return f"{spec.name:<24} {spec.language}, at most {spec.concurrency_limit} guests, made {function.created}"
