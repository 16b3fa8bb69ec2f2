"""`mayfly snapshot`: make snapshots, and show those that are there."""

import asyncio
import json
import urllib.parse
from pathlib import Path
from typing import Any

import click
import msgspec

from mayfly.cli.asking import ask
from mayfly.cli.flags import OF_SERVER, Configured, load_config
from mayfly.cli.sources import read_source
from mayfly.errors import ConfigError
from mayfly.guests.zygote import Zygote
from mayfly.host.checks import time_factor
from mayfly.host.config import Config
from mayfly.host.snippet import Snippet
from mayfly.paths import cache_dir
from mayfly.runs.service import Service
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.store import Snapshot


@click.group(name="snapshot")
def cli() -> None:
    """Make, list, look at and remove snapshots of machines."""


@cli.command(cls=Configured, without=(*(name for name in OF_SERVER if name != "socket"), "cold"))
@click.argument("language")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--name", default="", help="the snapshot's name; needed with FILE or --parent")
@click.option("--from", "from_run", default="", metavar="RUN", help="save the machine of this run of the server; the run goes on")
@click.option("--parent", default="", help="save what differs from this snapshot (default with FILE: the language's own)")
@click.option("--network", is_flag=True, help="make it for runs with a network; what it is made of, --network-backend says")
def create(language: str, file: Path | None, name: str, from_run: str, parent: str, network: bool, **flags: Any) -> None:
    """Make a snapshot of a machine of LANGUAGE; with --from, LANGUAGE is the snapshot's name.

    Without FILE it is the language's own, from which its runs start: a machine boots, runs the
    language's warm-up, and is saved. With FILE a machine goes on from --parent, runs this snippet,
    and what has changed is saved as --name.
    """
    config = load_config(flags)
    if from_run:
        create_from_run(from_run, language, config)
        return
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
            return await service.bases.make_over(Snippet(source=read_source(file)), image, name=name, parent=parent, network=network)
        if name:
            raise ConfigError("a language's own snapshot has its name", hint="leave --name out, or give the FILE of a snippet")
        return await service.bases.make(image, network=network, again=True)


def create_from_run(run: str, name: str, config: Config) -> None:
    """Have the server save the machine of a run, which goes on.

    Raises:
        HostError: no server is there.
        MayflyError: it refuses; the error is the server's own.
    """
    ask(config.socket, "POST", f"/runs/{urllib.parse.quote(run, safe='')}/snapshot", {"name": name})
    click.echo(_line(snapshots.find(name)))


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
def list_snapshots(as_json: bool) -> None:
    """List the snapshots; those that cannot be used with the reason."""
    found = list(snapshots.installed())
    if as_json:
        click.echo(json.dumps([_facts(item) if isinstance(item, Snapshot) else {"error": item.message} for item in found]))
        return
    for item in found:
        click.echo(_line(item) if isinstance(item, Snapshot) else f"unusable: {item.message}")


@cli.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def inspect(name: str, as_json: bool) -> None:
    """Show what the snapshot NAME is."""
    facts = _facts(snapshots.find(name))
    if as_json:
        click.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        click.echo(f"{key:<17} {value}")


@cli.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove the snapshots NAMES."""
    for name in names:
        snapshots.remove(name)


@cli.command()
@click.argument("name")
@click.argument("reference")
@click.option("--insecure", is_flag=True, help="plain http to a registry that is not on this host")
@click.option("--sign-with", type=click.Path(path_type=Path, dir_okay=False), help="sign it with the secret key in this file of minisign's")
def push(name: str, reference: str, insecure: bool, sign_with: Path | None) -> None:
    """Store the snapshot NAME in a registry under REFERENCE, for hosts that pull it."""
    from mayfly.cli.image import in_registry, showing_progress  # only here: they load much
    from mayfly.host import artifacts
    from mayfly.imagegen.oci.registry import RegistrySource
    from mayfly.imagegen.oci.signature import read_signer

    target = in_registry(reference)
    signer = read_signer(sign_with) if sign_with else None
    with showing_progress() as progress:
        source = RegistrySource(target, cache_dir() / "blobs", insecure=insecure, progress=progress)
        digest = artifacts.push(name, source, signer)
    click.echo(f"pushed {target.registry}/{target.repository}@{digest}")


@cli.command()
@click.argument("reference")
@click.option("--insecure", is_flag=True, help="plain http to a registry that is not on this host")
def pull(reference: str, insecure: bool) -> None:
    """Install the snapshot that was pushed under REFERENCE (a tag, or @sha256:…)."""
    from mayfly.cli.image import in_registry, showing_progress  # only here: they load much
    from mayfly.host import artifacts
    from mayfly.imagegen.oci.registry import RegistrySource

    with showing_progress() as progress:
        source = RegistrySource(in_registry(reference), cache_dir() / "blobs", insecure=insecure, progress=progress)
        manifest = artifacts.pull(source, progress, Config.load().image_keys)
    click.echo(_line(snapshots.find(manifest.name)))


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    facts = msgspec.to_builtins(snapshot.manifest)
    return {**facts, "disk_bytes": snapshots.disk_bytes(snapshot), "chain": [folder.name for folder in snapshot.chain]}


def _line(snapshot: Snapshot) -> str:
    manifest = snapshot.manifest
    parent = f" over {manifest.parent}" if manifest.parent else ""
    return f"{manifest.name:<24} {manifest.language} {manifest.version}{parent}, {snapshots.disk_bytes(snapshot) >> 20} MiB"
