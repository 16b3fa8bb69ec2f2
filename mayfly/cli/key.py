"""`mayfly key`: make, list and revoke the API keys of clients that come over TCP."""

import json
import re
from typing import Any

import click
import msgspec

from mayfly.cli.main import Size
from mayfly.host import keys
from mayfly.units import MIB


class Rate(click.ParamType[int]):
    """Runs a minute: 60/min."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """How many a minute."""
        match = re.fullmatch(r"([1-9][0-9]{0,8})(/min)?", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a rate; write it as 60/min", param, ctx)
        return int(match[1])


@click.group()
def cli() -> None:
    """Make, list and revoke API keys, which clients that come over TCP need.

    A running server follows at once. Run it as the server's user: keys are kept in its data folder.
    """


@cli.command()
@click.argument("name")
@click.option("--rate", type=Rate(), metavar="N/min", help="runs that may begin in a minute")
@click.option("--concurrency", type=click.IntRange(1, 1_000_000), metavar="N", help="runs under way at a time, waiting ones too")
@click.option("--memory", type=Size(), help="memory of their machines together, such as 4G")
@click.option("--readers", type=click.IntRange(1, 1_000_000), metavar="N", help="connections that read events of its runs at a time")
@click.option("--moves", is_flag=True, help="for another server, which moves runs here with it: mayfly move, mayfly drain")
def create(name: str, memory: int | None, moves: bool, **limits: int | None) -> None:
    """Make the key NAME and print its token, which cannot be shown again.

    What is not limited here has no limit but the server's.
    """
    if memory is not None and memory < MIB:
        raise click.BadParameter(f"no machine fits into {memory} bytes; write it as 512M or 4G", param_hint="--memory")
    click.echo(
        keys.create(keys.default_path(), name, memory=memory or 0, moves=moves, **{limit: most or 0 for limit, most in limits.items()})
    )
    click.echo("Store it now. Clients send it as the header `Authorization: Bearer TOKEN`.", err=True)


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
def list_keys(as_json: bool) -> None:
    """List the keys with their limits."""
    found = keys.load(keys.default_path())
    if as_json:
        click.echo(json.dumps([{name: value for name, value in msgspec.to_builtins(key).items() if name != "hash"} for key in found]))
        return
    for key in found:
        limits = [
            f"{key.rate} runs/min" if key.rate else "",
            f"{key.concurrency} at a time" if key.concurrency else "",
            f"{key.memory >> 20} MiB" if key.memory else "",
            f"{key.readers} readers" if key.readers else "",
            "may move runs here" if key.moves else "",
        ]
        click.echo(f"{key.name:<24} {key.created}  {', '.join(filter(None, limits)) or 'no limits'}")


@cli.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Take the key NAME back: its token is refused from now on. Its runs go on to their end."""
    keys.revoke(keys.default_path(), name)
