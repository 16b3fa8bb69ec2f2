"""`mayfly test`, `mayfly fmt` and `mayfly lint`: what is said of a run of those profiles."""

import functools
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mayfly.cli.flags import OF_SERVER, Configured, load_config
from mayfly.cli.messages import plain
from mayfly.exit_status import OUR_STATUS
from mayfly.files import atomic_write
from mayfly.runs.run import Run

MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped", "error": "ERROR", "timeout": "TIMEOUT"}
BAD = ("failed", "error", "timeout")


def _said(run: Run) -> str:
    """What the steps put out, as far as it is no result of a test."""
    steps = run.result().steps
    tested = run.tests and len(steps) == len(run.outcome.step_names)
    texts = [text for step in steps for text in (step.stdout, step.stderr)]
    if tested:
        texts[-2] = ""
    return "".join(text for text in texts if isinstance(text, str))


def show_tests(run: Run, _: Mapping[str, Path] = {}) -> int:
    """A line for each test, what those that went wrong say, and how many there were of a kind."""
    tests = run.result().tests or ()
    if run.outcome.error is not None:
        return run.verdict().exit_status
    said = _said(run)
    if said and run.verdict().exit_status:
        click.echo(plain(said), err=True, nl=not said.endswith("\n"))
    for test in tests:
        time = "" if test.wall_ms is None else f"  {test.wall_ms:.0f} ms"
        click.echo(plain(f"{MARKS[test.outcome]:8} {test.name}{time}"))
        if test.outcome in BAD:
            for line in (*test.message.splitlines(), *(f"| {line}" for line in test.output.splitlines())):
                click.echo(plain(f"         {line}"))
    counts = {outcome: sum(test.outcome == outcome for test in tests) for outcome in MARKS}
    words = [f"{count} {outcome}" for outcome, count in counts.items() if count]
    click.echo(", ".join(words) if words else "no tests")
    return run.verdict().exit_status or (1 if any(counts[outcome] for outcome in BAD) else 0)


def write_back(run: Run, named: Mapping[str, Path], *, check: bool) -> int:
    """Write what the formatter changed, or with `check` only say it: then the exit status is 1."""
    status = run.verdict().exit_status
    if status:
        click.echo(plain(_said(run)), err=True, nl=False)
        return status
    if run.files is None or run.files.error is not None:
        return OUR_STATUS  # it was said why
    changed = []
    for name, path in named.items():
        left = run.files.by_name.get(name)
        if left is not None and left.data != path.read_bytes():
            changed.append(path)
            if not check:
                with atomic_write(path, stat.S_IMODE(path.stat().st_mode)) as file:
                    file.write(left.data)
    for path in changed:
        click.echo(plain(f"{'would format' if check else 'formatted'} {path}"))
    return 1 if check and changed else 0


def show_findings(run: Run, _: Mapping[str, Path] = {}) -> int:
    """What the linter found."""
    click.echo(plain(_said(run)), nl=False)
    return run.verdict().exit_status


_F = TypeVar("_F", bound=Callable[..., Any])


def _command(function: _F) -> click.Command:
    """What the three commands have in common."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
        click.option(
            "--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="an option of the language, such as edition=2021"
        ),
        click.option(
            "--language", "-l", default="", help="language, or language@version; by default the one with the first file's extension"
        ),
        click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)),
    ):
        function = decorate(function)
    return click.command(cls=Configured, without=OF_SERVER)(function)


@_command
@click.option(
    "--hidden", multiple=True, type=click.Path(exists=True, path_type=Path), help="a file that is never given back; also a folder"
)
def test(files: tuple[Path, ...], hidden: tuple[Path, ...], **asked: Any) -> int:
    """Run the tests in FILES, or in folders, in a machine of its own.

    Exit status: 0 if all went well.
    """
    return _carry_out("test", files, show_tests, hidden=hidden, **asked)


@_command
@click.option("--check", is_flag=True, help="write nothing; the exit status is 1 if there is something to format")
def fmt(files: tuple[Path, ...], check: bool, **asked: Any) -> int:
    """Format FILES in place, as their language does."""
    return _carry_out("format", files, functools.partial(write_back, check=check), **asked)


@_command
def lint(files: tuple[Path, ...], **asked: Any) -> int:
    """Look for mistakes in FILES, as their language does."""
    return _carry_out("lint", files, show_findings, **asked)


def _carry_out(
    profile: str,
    files: tuple[Path, ...],
    finish: Callable[[Run, Mapping[str, Path]], int],
    *,
    language: str,
    options: tuple[str, ...],
    as_json: bool,
    hidden: tuple[Path, ...] = (),
    **flags: Any,
) -> int:
    flags["interactive_wall_s"] = flags["interactive_wall_s"] or flags["run_wall_s"]
    config = load_config(flags)
    from mayfly.guests.zygote import Zygote

    zygote = Zygote.fork()
    import asyncio

    from mayfly.cli.run import run_file
    from mayfly.host.checks import time_factor

    return asyncio.run(
        run_file(
            files,
            (),
            language=language,
            target="",
            options=dict(option.partition("=")[::2] for option in options),
            interactive=False,
            tty=False,
            network=False,
            snapshot="",
            asked={"profile": profile},
            collect_to=None,
            config=config.scaled(time_factor(config)),
            zygote=lambda: zygote,
            as_json=as_json,
            verbose=False,
            hidden=hidden,
            finish=finish,
        )
    )
