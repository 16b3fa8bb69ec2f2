"""`mayfly key`: make, list and revoke the API keys of clients that come over TCP."""

import json
import re
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from mayfly.cli.flags import Size
from mayfly.cli.fleet import Where, of_fleet
from mayfly.host import keys
from mayfly.host.keys import ApiKey
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
    With --fleet they are those of a whole fleet, whose gateways keep them.
    """


def _change_fleet(fleet: Where, add: ApiKey | None = None, revoke: str = "") -> Sequence[ApiKey]:
    """Change the keys of a fleet; all of them after that."""
    from mayfly.fleet.keys import KeyChange, change

    wanted = KeyChange(add=msgspec.json.encode(add) if add else b"", revoke=revoke)
    return fleet.ask(lambda engine: change(engine, wanted))


@cli.command()
@click.argument("name")
@click.option("--rate", type=Rate(), metavar="N/min", help="runs that may begin in a minute")
@click.option("--concurrency", type=click.IntRange(1, 1_000_000), metavar="N", help="runs under way at a time, waiting ones too")
@click.option("--memory", type=Size(), help="memory of their machines together, such as 4G")
@click.option("--readers", type=click.IntRange(1, 1_000_000), metavar="N", help="connections that read events of its runs at a time")
@click.option("--moves", is_flag=True, help="for another server, which moves runs here with it: mayfly move, mayfly drain")
@of_fleet
def create(
    name: str,
    memory: int | None,
    moves: bool,
    rate: int | None,
    concurrency: int | None,
    readers: int | None,
    fleet: Where | None,
) -> None:
    """Make the key NAME and print its token, which cannot be shown again.

    What is not limited here has no limit but the server's.
    """
    if memory is not None and memory < MIB:
        raise click.BadParameter(f"no machine fits into {memory} bytes; write it as 512M or 4G", param_hint="--memory")
    limits = {"rate": rate or 0, "concurrency": concurrency or 0, "readers": readers or 0, "memory": memory or 0}
    if fleet:
        key, token = keys.make(name, moves=moves, **limits)
        _change_fleet(fleet, add=key)
    else:
        token = keys.create(keys.default_path(), name, moves=moves, **limits)
    click.echo(token)
    click.echo("Store it now. Clients send it as the header `Authorization: Bearer TOKEN`.", err=True)


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
@of_fleet
def list_keys(as_json: bool, fleet: Where | None) -> None:
    """List the keys with their limits."""
    found = _change_fleet(fleet) if fleet else keys.load(keys.default_path())
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
@of_fleet
def revoke(name: str, fleet: Where | None) -> None:
    """Take the key NAME back: its token is refused from now on. Its runs go on to their end."""
    if fleet:
        _change_fleet(fleet, revoke=name)
    else:
        keys.revoke(keys.default_path(), name)
