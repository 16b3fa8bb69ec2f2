"""`mayfly move` and `mayfly drain`: have the server of this user give runs to another server."""

import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

import click

from mayfly.cli.asking import lines_of
from mayfly.cli.flags import Configured, Size, load_config
from mayfly.errors import from_wire

KEY = "MAYFLY_MOVE_KEY"


def _options(command: Any) -> Any:
    """The options that both commands have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="print each line as JSON"),
        click.option(
            "--certificates", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="file with the certificates to trust"
        ),
        click.option("--limit", type=Size(), default=0, help="bytes that may be sent a second, such as 50M (default: no limit)"),
        click.option("--to", required=True, metavar="ADDRESS", help="https://host:port, http://host:port, or the path of a Unix socket"),
    ):
        command = option(command)
    return command


def _body(to: str, limit: int, certificates: Path | None) -> dict[str, Any]:
    given = {"to": to, "key": os.environ.get(KEY, ""), "limit_bytes_s": limit}
    return {**given, "certificates": str(certificates.resolve())} if certificates else given


@click.command(cls=Configured, only=("socket",))
@click.argument("run")
@_options
def move(run: str, to: str, limit: int, certificates: Path | None, as_json: bool, **flags: Any) -> None:
    """Move the RUN, with its machine, to the server at ADDRESS, where it goes on.

    Who reads the run here, or writes to it, goes on as before. The key for the other server is in
    the environment variable MAYFLY_MOVE_KEY; it is made there: mayfly key create NAME --moves.
    Ctrl-C takes the move back, until the other server has the machine.
    """
    config = load_config(flags)
    for line in lines_of(config.socket, f"/runs/{urllib.parse.quote(run, safe='')}/move", _body(to, limit, certificates)):
        _show(line, as_json)
        if line["event"] == "stayed":
            raise from_wire(line["error"])


@click.command(cls=Configured, only=("socket",))
@_options
def drain(to: str, limit: int, certificates: Path | None, as_json: bool, **flags: Any) -> int:
    """Take no more runs, and move those under way to the server at ADDRESS.

    What cannot be moved stays and goes on to its end; exit status 1 then. The server may be stopped
    afterwards: the runs that have moved go on. The key is as for mayfly move.
    """
    config = load_config(flags)
    stayed = 0
    for line in lines_of(config.socket, "/drain", _body(to, limit, certificates)):
        _show(line, as_json)
        stayed += line["event"] == "stayed"
    return 1 if stayed else 0


def _show(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(line))
        return
    match line["event"]:
        case "image":
            click.echo(f"image: {line['bytes'] / (1 << 20):.0f} of {line['size'] / (1 << 20):.0f} MiB", err=True)
        case "round":
            click.echo(f"round {line['number']}: {line['bytes'] / (1 << 20):.1f} MiB", err=True)
        case "moved":
            size, pause = line["bytes"] / (1 << 20), line["pause_s"] * 1000
            click.echo(f"{line['run']} goes on at {line['to']}: {size:.1f} MiB in {line['total_s']:.2f} s, stood still for {pause:.0f} ms")
        case "stayed":
            click.echo(f"{line['run']} stays: {line['error']['message']}", err=True)
        case "drained":
            click.echo(f"{line['moved']} runs moved, {line['stayed']} stay", err=True)
