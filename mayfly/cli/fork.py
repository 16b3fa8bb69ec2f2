"""`mayfly fork`: have the server of this user make clones of a run."""

import json
import urllib.parse
from typing import Any

import click

from mayfly.cli.asking import ask
from mayfly.cli.flags import Configured, load_config


@click.command(cls=Configured, only=("socket",))
@click.argument("run")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="how many clones")
@click.option("--json", "as_json", is_flag=True, help="print the answer as JSON")
def fork(run: str, count: int, as_json: bool, **flags: Any) -> None:
    """Make clones of the RUN, in the middle of its program; the run goes on.

    Each clone is a run of its own, whose output begins with that of the RUN so far; its id and
    its output socket are printed.
    """
    config = load_config(flags)
    found = ask(config.socket, "POST", f"/runs/{urllib.parse.quote(run, safe='')}/fork", {"count": count})
    if as_json:
        click.echo(json.dumps(found))
        return
    for clone in found["clones"]:
        click.echo(f"{clone['id']}  {clone['output_socket']}")
