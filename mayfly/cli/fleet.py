"""`mayfly fleet`: try a fleet out, see its hosts, drain them, let others in."""

import asyncio
import functools
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from mayfly import paths
from mayfly.cli.flags import Size

if TYPE_CHECKING:  # what a fleet needs may not be installed, and takes long to load
    from mayfly.fleet.engine import Engine
    from mayfly.fleet.operate import Seen

_T = TypeVar("_T")
DEFAULT_URL = "nats://127.0.0.1:4222"


def with_fleet(command: Callable[..., Any]) -> Callable[..., Any]:
    """Say what is lacking where a fleet's parts are not installed."""

    @functools.wraps(command)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ModuleNotFoundError as error:
            raise click.ClickException(f"{error}: install what a fleet needs: pip install 'mayfly-vm[fleet]'") from error

    return called


@click.group()
def cli() -> None:
    """Many hosts behind one address (docs/fleet.md)."""


@cli.command()
@click.option("--local", "hosts", type=click.IntRange(1, 16), required=True, metavar="N", help="how many hosts, all on this machine")
@click.option("--port", type=click.IntRange(0, 65535), default=4222, show_default=True, help="of nats-server, on loopback; 0: any")
@click.option("--socket", type=click.Path(path_type=Path), help="path of the gateway's socket (default: that of `mayfly serve`)")
@click.option("--folder", type=click.Path(path_type=Path), help="where its data and logs are kept (default: a new one, which is removed)")
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="serve at the gateway over TCP too")
@click.option("--playground", is_flag=True, help="serve a page to try it on at the gateway")
@with_fleet
def up(hosts: int, port: int, socket: Path | None, folder: Path | None, listen: tuple[str, ...], playground: bool) -> None:
    """Serve a fleet on this machine until it is told to stop: a server, a gateway, N hosts."""
    from mayfly.fleet import local

    of_gateway = [word for address in listen for word in ("--listen", address)] + ["--playground"] * playground
    with tempfile.TemporaryDirectory(prefix="mayfly-fleet-") as made:
        local.serve_locally(
            hosts,
            (folder or Path(made)).absolute(),
            port=port or -1,
            socket=(socket or paths.runtime_dir() / "api.sock").absolute(),
            of_gateway=of_gateway,
            of_hosts=(),
            say=lambda text: click.echo(f"fleet: {text}", err=True),
        )


def _asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say which fleet is asked."""
    for option in (
        click.option("--fleet-ca", default="", metavar="FILE", help="authority of the servers' certificates (PEM)"),
        click.option("--fleet-seed", default="", metavar="FILE", help="seed of an operator's token"),
        click.option("--name", default="operator", help="name of that token"),
        click.option(
            "--fleet",
            "urls",
            multiple=True,
            default=[DEFAULT_URL],
            show_default=True,
            envvar="MAYFLY_FLEET",
            metavar="URL",
            help="a server of the fleet; of several, one that is there is asked",
        ),
    ):
        command = option(command)
    return command


def ask_fleet(work: "Callable[[Engine], Coroutine[Any, Any, _T]]", urls: Sequence[str], name: str, fleet_seed: str, fleet_ca: str) -> _T:
    """Do `work` with a connection to the fleet, as an operator."""
    from mayfly.fleet.engine import Credentials, Engine

    async def whole() -> _T:
        async with Engine.connect(urls, name, Credentials(seed=fleet_seed, ca=fleet_ca)) as engine:
            return await work(engine)

    return asyncio.run(whole())


class Where(NamedTuple):
    """The fleet that a command is about, and who comes."""

    urls: Sequence[str]
    name: str
    seed: str
    ca: str

    def ask(self, work: "Callable[[Engine], Coroutine[Any, Any, _T]]") -> _T:
        """Do `work` with a connection to it."""
        return ask_fleet(work, self.urls, self.name, self.seed, self.ca)


def of_fleet(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags with which a command is about a fleet's things: it is given `fleet`, or None
    for this machine's.
    """

    @functools.wraps(command)
    def called(*args: Any, urls: Sequence[str], fleet_name: str, fleet_seed: str, fleet_ca: str, **kwargs: Any) -> Any:
        fleet = Where(urls, fleet_name, fleet_seed, fleet_ca) if urls else None
        return with_fleet(command)(*args, fleet=fleet, **kwargs)

    for option in (
        click.option("--fleet-ca", default="", metavar="FILE", help="authority of the servers' certificates (PEM)"),
        click.option("--fleet-seed", default="", metavar="FILE", help="seed of an operator's token"),
        click.option("--fleet-name", default="operator", help="name of that token"),
        click.option(
            "--fleet", "urls", multiple=True, metavar="URL", help="those of the fleet with a server at this URL, or at one of several"
        ),
    ):
        called = option(called)
    return called


@cli.command("list")
@_asks
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
@with_fleet
def list_hosts(as_json: bool, **where: Any) -> None:
    """List the hosts that are there."""
    from mayfly.fleet import operate

    _show(ask_fleet(operate.look, **where), as_json=as_json)


def _show(seen: "list[Seen]", *, as_json: bool = False) -> None:
    if as_json:
        shown = [
            {
                "name": host.name,
                "architecture": host.about.arch,
                "version": host.about.version,
                "languages": host.languages,
                "running": host.beat.running,
                "waiting": host.beat.waiting,
                "idle": host.beat.idle,
                "memory_used": host.beat.memory_used,
                "memory_budget": host.beat.memory_budget,
                "draining": host.beat.draining,
                "fetching": host.beat.fetching,
            }
            for host in seen
        ]
        click.echo(json.dumps(shown))
        return
    for host in seen:
        beat = host.beat
        state = "draining" if beat.draining else "serving"
        memory = f"{beat.memory_used >> 20}/{beat.memory_budget >> 20} MiB"
        has = [*host.languages, *(f"{image} ({percent} %)" for image, percent in beat.fetching.items())]
        click.echo(f"{host.name:<24} {host.about.arch:<8} {state:<9} {beat.running:>4} runs {memory:>18}  {', '.join(has)}")


@cli.command()
@_asks
@click.option("--every", type=click.FloatRange(0, 60), default=1.0, show_default=True, help="seconds between two looks")
@click.option("--times", type=click.IntRange(1), help="how often (default: until you stop it)")
@with_fleet
def top(every: float, times: int | None, **where: Any) -> None:
    """Show the hosts and their load, again and again."""
    from mayfly.fleet import operate

    while times is None or times > 0:
        seen = ask_fleet(operate.look, **where)
        click.clear()
        click.echo(f"{time.strftime('%H:%M:%S')}  {len(seen)} hosts, {sum(host.beat.running for host in seen)} runs")
        _show(seen)
        times = None if times is None else times - 1
        time.sleep(every if times != 0 else 0)


@cli.command()
@_asks
@click.argument("host")
@click.option("--wait", "within_s", type=click.FloatRange(0, 86400), default=0, help="wait so many seconds until its runs have ended")
@click.option("--limit", type=Size(), default=0, help="bytes of runs that may be sent a second, such as 50M (default: no limit)")
@with_fleet
def drain(host: str, within_s: float, limit: int, **where: Any) -> None:
    """Have HOST take no more runs; long ones move to other hosts, the rest go on to their end."""
    from mayfly.fleet import operate

    async def work(engine: "Engine") -> None:
        await operate.wish(engine, host, drain=True, limit_bytes_s=limit)
        if within_s:
            await operate.wait_until_idle(engine, host, within_s)

    ask_fleet(work, **where)


@cli.command()
@_asks
@click.argument("host")
@with_fleet
def undrain(host: str, **where: Any) -> None:
    """Have HOST take runs again."""
    from mayfly.fleet import operate

    ask_fleet(lambda engine: operate.wish(engine, host, drain=False), **where)


@cli.group("image")
def images() -> None:
    """Offer images and snapshots that are in a registry to hosts, which fetch them when a run wants
    them.
    """


@images.command("add")
@_asks
@click.argument("reference")
@click.option("--insecure", is_flag=True, help="the registry speaks plain HTTP")
@with_fleet
def add_image(reference: str, insecure: bool, **where: Any) -> None:
    """Offer the image at REFERENCE (mayfly image push), in the place of one of the same language,
    version and architecture; or the snapshot there (mayfly snapshot push), in the place of one of
    the same name and architecture.
    """
    from mayfly.fleet import catalog

    offer = catalog.make_offer(reference, insecure=insecure)
    ask_fleet(lambda engine: catalog.change(engine, catalog.ImageChange(add=offer)), **where)
    click.echo(f"offered {offer.reference}")


@images.command("list")
@_asks
@with_fleet
def list_images(**where: Any) -> None:
    """List what is offered."""
    from mayfly.fleet import catalog

    for offer in ask_fleet(lambda engine: catalog.change(engine, catalog.ImageChange()), **where):
        name, arch = offer.what
        click.echo(f"{name:<24} {arch:<8} {offer.reference}")


@images.command("rm")
@_asks
@click.argument("image")
@with_fleet
def remove_image(image: str, **where: Any) -> None:
    """Offer IMAGE (python@3.13), or a snapshot of that name, no more. Hosts keep what they have."""
    from mayfly.fleet import catalog

    ask_fleet(lambda engine: catalog.change(engine, catalog.ImageChange(remove=image)), **where)


@cli.group()
def token() -> None:
    """Let hosts, gateways and operators into the fleet: an nkey for each."""


def _users(command: Callable[..., Any]) -> Callable[..., Any]:
    path = paths.data_dir() / "fleet" / "users.conf"
    return click.option(
        "--users", type=click.Path(path_type=Path), default=path, help="file that the fleet's servers include, and reload after a change"
    )(command)


@token.command("create")
@_users
@click.argument("name")
@click.option("--kind", type=click.Choice(["host", "gateway", "operator"]), default="host", show_default=True, help="what it is")
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), default="x86_64", show_default=True, help="of a host")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="file for its seed, for --fleet-seed")
@with_fleet
def create_token(name: str, kind: str, arch: str, output: Path, users: Path) -> None:
    """Let NAME in: write its seed into a file, and what it may do into the servers' file of users.

    Then have the servers reload that: nats-server --signal reload.
    """
    from mayfly.fleet import tokens

    try:
        output.touch(0o600, exist_ok=False)  # before there is a token whose seed nobody has
    except OSError as error:
        raise click.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from error
    try:
        output.write_bytes(tokens.create(users, name, kind, arch if kind == "host" else ""))
    except BaseException:
        output.unlink()
        raise


@token.command("list")
@_users
def list_tokens(users: Path) -> None:
    """List who may come in."""
    from mayfly.fleet import tokens

    for member in tokens.load(users):
        click.echo(f"{member.name:<24} {member.kind:<9} {member.arch}")


@token.command("revoke")
@_users
@click.argument("name")
def revoke_token(name: str, users: Path) -> None:
    """Let NAME in no more, once the servers have reloaded the file."""
    from mayfly.fleet import tokens

    tokens.revoke(users, name)
