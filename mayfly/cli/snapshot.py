"""`mayfly snapshot`: make snapshots, and show those that are there."""

import asyncio
import json
import urllib.parse
from pathlib import Path
from typing import Any

import click
import msgspec

from mayfly.cli.asking import ask
from mayfly.cli.run import read_source
from mayfly.errors import ConfigError
from mayfly.guests.zygote import Zygote
from mayfly.host.checks import time_factor
from mayfly.host.config import Config
from mayfly.host.snippet import Snippet
from mayfly.runs.service import Service
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.store import Snapshot


def create(language: str, file: Path | None, *, name: str, parent: str, network: bool, config: Config) -> None:
    """Make a snapshot and say what it is.

    Raises:
        MayflyError: it cannot be made.
    """
    if (file or parent) and not name:
        raise ConfigError("the snapshot needs a name", hint="give --name")
    if parent and not file:
        raise ConfigError("a snapshot with a parent needs something to do", hint="give the FILE of a snippet")
    config = config.scaled(time_factor(config))
    snapshots.sweep()
    found = asyncio.run(_create(language, file, name=name, parent=parent, network=network, config=config))
    click.echo(_line(found))


async def _create(language: str, file: Path | None, *, name: str, parent: str, network: bool, config: Config) -> Snapshot:
    async with Service(config, Zygote.start) as service:
        image = service.find_image(language)
        if file is not None:
            return await service.make_snapshot(Snippet(source=read_source(file)), image, name=name, parent=parent, network=network)
        if name:
            raise ConfigError("a language's own snapshot has its name", hint="leave --name out, or give the FILE of a snippet")
        return await service.make_base(image, network=network, again=True)


def create_from_run(run: str, name: str, config: Config) -> None:
    """Have the server save the machine of a run, which goes on.

    Raises:
        HostError: no server is there.
        MayflyError: it refuses; the error is the server's own.
    """
    ask(config.socket, "POST", f"/runs/{urllib.parse.quote(run, safe='')}/snapshot", {"name": name})
    click.echo(_line(snapshots.find(name)))


def show_all(*, as_json: bool) -> None:
    """List the snapshots; those that cannot be used with the reason."""
    found = list(snapshots.installed())
    if as_json:
        click.echo(json.dumps([_facts(item) if isinstance(item, Snapshot) else {"error": item.message} for item in found]))
        return
    for item in found:
        click.echo(_line(item) if isinstance(item, Snapshot) else f"unusable: {item.message}")


def show(name: str, *, as_json: bool) -> None:
    """Show one snapshot whole."""
    facts = _facts(snapshots.find(name))
    if as_json:
        click.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        click.echo(f"{key:<17} {value}")


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    facts = msgspec.to_builtins(snapshot.manifest)
    return {**facts, "disk_bytes": snapshots.disk_bytes(snapshot), "chain": [folder.name for folder in snapshot.chain]}


def _line(snapshot: Snapshot) -> str:
    manifest = snapshot.manifest
    parent = f" over {manifest.parent}" if manifest.parent else ""
    return f"{manifest.name:<24} {manifest.language} {manifest.version}{parent}, {snapshots.disk_bytes(snapshot) >> 20} MiB"
