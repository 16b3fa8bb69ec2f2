"""The command `mayfly`, and `imagegen`, an alias of `mayfly image`.

A command imports what it needs, so that each starts quickly.
"""

import functools
import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from mayfly import __version__
from mayfly.cli.flags import OF_SERVER, Configured, OwnFirst, Size, load_config
from mayfly.exit_status import OUR_STATUS

ELSEWHERE = {
    "fleet": "mayfly.cli.fleet",
    "function": "mayfly.cli.function",
    "image": "mayfly.cli.image",
    "kernel": "mayfly.cli.kernel",
    "key": "mayfly.cli.key",
    "network": "mayfly.cli.network",
    "snapshot": "mayfly.cli.snapshot",
    "workload": "mayfly.cli.workload",
}
"""Groups of commands in modules of their own, imported when they are called."""
ALSO = {
    **{"drain": "mayfly.cli.move", "fork": "mayfly.cli.fork", "move": "mayfly.cli.move"},
    **{"fmt": "mayfly.cli.profiles", "lint": "mayfly.cli.profiles", "test": "mayfly.cli.profiles"},
}
"""Commands in modules of their own, by the names that they have there."""


class Program(click.Group):
    """The commands of this module and those from ELSEWHERE and ALSO."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted([*super().list_commands(ctx), *ELSEWHERE, *ALSO])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name in ALSO:
            found: click.Command = getattr(importlib.import_module(ALSO[cmd_name]), cmd_name)
            return found
        return group(cmd_name) if cmd_name in ELSEWHERE else super().get_command(ctx, cmd_name)


def group(name: str) -> click.Group:
    """A group from ELSEWHERE."""
    found: click.Group = importlib.import_module(ELSEWHERE[name]).cli
    return found


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="mayfly")
def cli() -> None:
    """Run untrusted code snippets, each in a virtual machine of its own."""


def _of_fleet(command: click.Command) -> click.Command:
    """Add the flags that say where a fleet is, and who comes."""
    command.params[:0] = [
        click.Option(["--name"], default="", help="name in the fleet, which nobody else in it has (default: the machine's)"),
        click.Option(["--fleet-seed"], default="", metavar="FILE", help="seed that `mayfly fleet token create` made (nkey)"),
        click.Option(["--fleet-ca"], default="", metavar="FILE", help="authority of the certificates of the fleet's servers (PEM)"),
        click.Option(["--replicas"], type=click.IntRange(1, 5), default=1, help="servers that have each run: 3 of a cluster"),
        click.Option(["--ack-wait"], type=click.FloatRange(0.5, 600), default=5.0, help="seconds that a host may be silent"),
    ]
    return command


def _take_place(urls: Sequence[str], flags: dict[str, Any]) -> Any:
    """The place that flags say."""
    try:
        from mayfly.fleet.engine import Credentials
        from mayfly.fleet.open import Place
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error}: install what a fleet needs: pip install 'mayfly-vm[fleet]'") from error
    credentials = Credentials(ca=flags.pop("fleet_ca"), seed=flags.pop("fleet_seed"))
    replicas, ack_wait_s = flags.pop("replicas"), flags.pop("ack_wait")
    return Place(urls=tuple(urls), name=flags.pop("name"), credentials=credentials, replicas=replicas, ack_wait_s=ack_wait_s)


@_of_fleet
@cli.command(cls=Configured)
@click.option("--join", multiple=True, metavar="URL", help="work for the fleet at nats://HOST:PORT too (docs/fleet.md)")
def serve(join: tuple[str, ...], **flags: Any) -> None:
    """Serve the API on a Unix socket until SIGTERM or SIGINT; with --listen over TCP too.

    Clients of the Unix socket need no key. Those that come over TCP need one: mayfly key create.
    """
    joining = None
    if join:
        place = _take_place(join, flags)
        from mayfly.fleet.open import join as join_fleet

        joining = functools.partial(join_fleet, place=place)
    else:
        for name in ("name", "fleet_seed", "fleet_ca", "replicas", "ack_wait"):
            del flags[name]
    config = load_config(flags)
    from mayfly.api.app import main as serve_main
    from mayfly.gateways import frames

    serve_main(config, gateways=(frames.serve,), join=joining)


@_of_fleet
@cli.command(cls=Configured)
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
def gateway(urls: tuple[str, ...], **flags: Any) -> None:
    """Serve the API for the hosts of the fleet at nats://HOST:PORT (docs/fleet.md), as `serve`
    does for this one.
    """
    place = _take_place(urls, flags)
    config = load_config(flags)
    from mayfly.api.app import prepare, run_server
    from mayfly.fleet.open import gateway as open_gateway

    prepare(config)
    run_server(config, functools.partial(open_gateway, place=place))


@cli.command(cls=OwnFirst, without=OF_SERVER)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--language", "-l", default="", help="language, or language@version; by default the one with the file's extension")
@click.option("--target", type=click.Choice(["wasm"]), help="compile it to WebAssembly, whose runs can be checkpointed")
@click.option("--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="an option of the language, such as edition=2021")
@click.option("--interactive", "-i", is_flag=True, help="somebody talks to it: it may take --interactive-wall-s instead of --wall")
@click.option("--tty", "-t", is_flag=True, help="give it a terminal, as interactive; Ctrl-] leaves it")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON instead of passing the output through")
@click.option("--verbose", "-v", is_flag=True, help="say on standard error how long each phase took")
@click.option("--network", is_flag=True, help="give the snippet a network; what it is made of, --network-backend says")
@click.option("--snapshot", default="", help="run it in a machine restored from this snapshot instead of its language's own")
@click.option(
    "--cases",
    type=click.Path(exists=True, path_type=Path),
    help="run it for each case in this file of JSON, or for each NAME.in of this folder",
)
@click.option("--stop-at-first-failure", is_flag=True, help="skip the cases behind the first that does not pass")
@click.option("--parallel", type=click.IntRange(1, 200), help="most guests that do cases at a time (default: as there is room)")
@click.option("--collect", multiple=True, metavar="GLOB", help="want the files back that match when it has ended, such as 'out/**/*.png'")
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(min=1),
    metavar="S",
    help="save the machine every S seconds, and go on from there if it is lost; standard input is empty then",
)
@click.option("--collect-to", type=click.Path(file_okay=False, path_type=Path), help="folder that they are written to")
@click.option("--no-server", is_flag=True, help="start a machine of its own even if a server of yours could run it (docs/api.md)")
def run(
    file: Path,
    args: tuple[str, ...],
    language: str,
    target: str | None,
    options: tuple[str, ...],
    interactive: bool,
    tty: bool,
    as_json: bool,
    verbose: bool,
    network: bool,
    snapshot: str,
    cases: Path | None,
    stop_at_first_failure: bool,
    parallel: int | None,
    checkpoint_every: float | None,
    collect: tuple[str, ...],
    collect_to: Path | None,
    no_server: bool,
    **flags: Any,
) -> int:
    """Run the snippet in FILE, with ARGS (after `--`), in a machine of its own.

    The machine is that of your server, if one is running and the command needs no other settings
    than the server has.

    Standard input and output pass through. Exit status: the program's; 128 + n for signal n; 124 if
    a limit ended it; 1 if it could not be built; 125 if Mayfly itself failed.
    """
    if tty and as_json:
        raise click.UsageError("--json shows nothing before the end; leave it out, or --tty")
    if collect_to if not collect else not (collect_to or as_json):
        raise click.UsageError("--collect GLOB and --collect-to FOLDER go together; --json has the files in it")
    gc.disable()  # this process makes little that lasts, and ends soon
    chosen = dict(option.partition("=")[::2] for option in options)
    if not (no_server or flags or tty or snapshot or cases or checkpoint_every):
        from mayfly.cli.served import run_at_server

        wanted = {"options": chosen, "network": network, "args": list(args), "collect": list(collect), "target": target}
        status = run_at_server(file, language, wanted, interactive=interactive, collect_to=collect_to, as_json=as_json, verbose=verbose)
        if status is not None:
            return status
    flags["interactive_wall_s"] = flags.get("interactive_wall_s") or flags.get("run_wall_s")
    config = load_config(flags)
    asked: dict[str, Any] = {"collect": collect, "checkpoint_every_s": checkpoint_every or 0.0}
    if cases:
        from mayfly.cli.cases import read_cases

        asked |= {"cases": read_cases(cases), "stop_at_first_failure": stop_at_first_failure, "parallel": parallel}
    from mayfly.guests.zygote import Zygote

    zygote = Zygote.fork()
    sys.modules["ssl"] = None  # type: ignore[assignment]  # asyncio can do without OpenSSL, which takes long to load
    import asyncio

    from mayfly.cli.run import run_file
    from mayfly.host.checks import time_factor

    return asyncio.run(
        run_file(
            (file,),
            args,
            language=language,
            target=target or "",
            options=chosen,
            interactive=interactive or tty,
            tty=tty,
            network=network,
            snapshot=snapshot,
            asked=asked,
            collect_to=collect_to,
            config=config.scaled(time_factor(config)),
            zygote=lambda: zygote,
            as_json=as_json,
            verbose=verbose,
        )
    )


@cli.command(cls=Configured, only=("socket",))
@click.argument("run_id", metavar="RUN")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="the file (default: RUN.checkpoint)")
def checkpoint(run_id: str, output: Path | None, **flags: Any) -> None:
    """Stop a run of the server, whose program is WebAssembly, and write its state to a file.

    The program goes on from it with `mayfly resume FILE`, on any host and any architecture.
    """
    from mayfly.cli.checkpoint import save

    click.echo(save(run_id, output, load_config(flags)))


@cli.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--to", default="")
@click.option("--certificates", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_context
def resume(context: click.Context, words: tuple[str, ...], to: str, certificates: Path | None) -> Any:
    """Let a program go on from the FILE of its checkpoint; options are those of `mayfly run`.

    With --to ADDRESS it goes on at the server there (https://host:port, or the path of a Unix
    socket), with the key in the environment variable MAYFLY_KEY.
    """
    if not to:
        return run.main(["--language", "wasm", *words], prog_name=f"{context.command_path} (as run)", standalone_mode=False)
    if len(words) != 1:
        raise click.UsageError("--to ADDRESS goes with one FILE alone: the server has its own limits, the program its arguments")
    import asyncio

    from mayfly.cli.resuming import resume_at

    return asyncio.run(resume_at(Path(words[0]), to, certificates))


@cli.command()
@click.option("--kernel", required=True, type=click.Path(exists=True, dir_okay=False), help="vmlinux or bzImage")
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False), help="initramfs")
@click.option("--cmdline", default="", help="kernel parameters, behind those for the devices")
@click.option("--memory", type=Size(), default="512M", show_default=True, help="guest memory")
@click.option("--cpus", type=int, default=1, show_default=True, help="virtual CPUs")
@click.option(
    "--user", default="nobody", show_default=True, help="when started by root: an id of its own in the group of this user; empty: stay root"
)
def boot(kernel: str, initrd: str | None, cmdline: str, memory: int, cpus: int, user: str) -> int:
    """Boot any kernel and show its console."""
    from mayfly.cli.boot import boot_console
    from mayfly.vmm.config import MachineConfig

    config = MachineConfig(kernel=kernel, initrd=initrd, cmdline=cmdline, memory=memory, cpus=cpus, user=user or None, interactive=True)
    return boot_console(config)


@cli.command(cls=Configured)
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
def doctor(as_json: bool, **flags: Any) -> int:
    """Look at what runs need on this host; say how to fix what is missing. Exit status 1 if
    something is.
    """
    config = load_config(flags)
    from mayfly.host.checks import examine

    checks = []
    for check in examine(config):
        checks.append(check)
        if not as_json:
            click.echo(f"{'ok     ' if check.ok else 'problem'}  {check.name:<10} {check.finding}")
            if not check.ok and check.fix:
                click.echo(f"         {'':<10} -> {check.fix}")
    if as_json:
        click.echo(json.dumps({"ok": all(check.ok for check in checks), "checks": [check._asdict() for check in checks]}))
    return 0 if all(check.ok for check in checks) else 1


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; for bash: `eval "$(mayfly completion bash)"`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "mayfly", "_MAYFLY_COMPLETE").source())


def _open_standard_descriptors() -> None:
    """See that 0, 1 and 2 are open: what is opened later must not be taken for standard input or
    output (`mayfly run x.rs >&-`).
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def main() -> None:
    """Run `mayfly`."""
    _finish("mayfly", cli, OUR_STATUS if sys.argv[1:2] in (["run"], ["resume"], ["test"], ["fmt"], ["lint"]) else 1)


def imagegen() -> None:
    """Run `imagegen`, the alias of `mayfly image`."""
    _finish("imagegen", group("image"), 1)


def _finish(program: str, command: click.Command, ours: int) -> NoReturn:
    """Run the command and end with its exit status; `ours` where Mayfly itself failed.

    This is the outermost handler: every error becomes a message and what to do about it.
    """
    _open_standard_descriptors()
    try:
        status = command.main(prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = OUR_STATUS if ours == OUR_STATUS else error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print(f"{program}: interrupted", file=sys.stderr)
        status = 130
    except SystemExit as error:  # click's own: it has completed a line, or nobody reads the output
        status = error.code
    except Exception as error:
        from mayfly.cli.messages import report

        report(error, program)
        status = ours
    try:
        print(end="", flush=True)
    except OSError:
        status = ours
    sys.stderr.flush()
    # At once: Python would first take all its modules apart, one object after the other, and wait
    # for threads. A download in one of them goes on in the next build.
    os._exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
