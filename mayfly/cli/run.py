"""`mayfly run`: one snippet from a file, its output live, its exit status ours."""

import asyncio
import contextlib
import functools
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mayfly.cli.cases import line, summary
from mayfly.cli.descriptors import FdStdin, FdWriter, settle
from mayfly.cli.ending import explain, show_costs
from mayfly.cli.messages import plain, report
from mayfly.cli.sources import files_in, name_files, read_source
from mayfly.errors import MayflyError, UnknownLanguageError
from mayfly.exit_status import OUR_STATUS
from mayfly.guests.spawner import GRACE_S
from mayfly.guests.zygote import Zygote
from mayfly.host.config import Config
from mayfly.host.snippet import RUN, Snippet
from mayfly.images.manifest import Manifest
from mayfly.images.store import InstalledImage
from mayfly.protocol.frames import Stage, Stderr, Stdout
from mayfly.runs.cases import CaseResult
from mayfly.runs.record import Reader, Restored
from mayfly.runs.result import describe_end
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.snapshots.store import find

if TYPE_CHECKING:
    from mayfly.cli.terminal import LocalTerminal


def _find_image(service: Service, language: str, paths: Sequence[Path], target: str) -> InstalledImage:
    """The image of a language; without one that for the first file, or for any of a folder.

    Raises:
        UnknownLanguageError: there is none.
    """
    files = files_in(paths[0])
    for path in files[:-1]:
        with contextlib.suppress(UnknownLanguageError):
            return service.find_image(language, path, target)
    return service.find_image(language, files[-1], target)


def _source_name(manifest: Manifest, profile: str, name: str) -> str:
    """The name that a language wants for its only file, which is called `name`."""
    wanted = manifest.profiles[profile].source_file if profile in manifest.profiles else ""
    return wanted or manifest.source_name(name)


async def run_file(
    paths: Sequence[Path],
    args: tuple[str, ...],
    *,
    language: str,
    target: str,
    options: Mapping[str, str],
    interactive: bool,
    tty: bool,
    network: bool,
    snapshot: str,
    asked: Mapping[str, Any],
    collect_to: Path | None,
    config: Config,
    zygote: Callable[[], Zygote],
    as_json: bool,
    verbose: bool,
    hidden: Sequence[Path] = (),
    finish: Callable[[Run, Mapping[str, Path]], int] | None = None,
) -> int:
    """Run the files, of which the first says the language, and give the exit status of docs/api.md.
    SIGINT and SIGTERM end the machine first. `asked` are further fields of the snippet. With
    `finish` nothing is shown meanwhile: it says what came of it, and the exit status.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, settle, stopped, 128 + number)
    grace_s = GRACE_S if as_json or verbose else 0
    async with Service(config, zygote, grace_s=grace_s) as service:
        image = _find_image(service, language, paths, target)
        named = name_files([*paths, *hidden], functools.partial(_source_name, image.manifest, asked.get("profile", RUN)))
        contents = {name: read_source(path) for name, path in named.items()}
        concealed = {name for name, path in named.items() if any(path.is_relative_to(one) for one in hidden)}
        files = {name: content for name, content in contents.items() if name not in concealed}
        asked = {"files": files, "hidden_files": {name: contents[name] for name in concealed}, **asked}
        chosen = find(snapshot) if snapshot else None
        snippet = Snippet(
            args=args,
            options=options,
            network=network,
            interactive=interactive,
            **asked,
        )
        with _local_terminal(stopped) if tty else contextlib.nullcontext() as terminal:
            if terminal is None:
                stdin = None if snippet.checkpoint_every_s else FdStdin(0)
                run = service.start(snippet, image, stdin, snapshot=chosen)
                showing = asyncio.create_task(_nothing(run) if as_json or finish else _show(run))
            else:
                run = service.start(replace(snippet, tty=terminal.size), image, terminal.stdin, snapshot=chosen)
                resize = functools.partial(service.resize, run)
                showing = asyncio.create_task(_show(run, functools.partial(terminal.hand_over, resize)))
            waiting: set[asyncio.Future[Any]] = {showing, stopped}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                showing.cancel()
                return stopped.result()
            try:
                showing.result()
            except BrokenPipeError:
                return 128 + signal.SIGPIPE
            await service.settled(run)
        if as_json:
            print(json.dumps(run.to_json(), ensure_ascii=False), flush=True)
        else:
            ends = [describe_end(step) for step in run.outcome.steps]
            explain(ends, run.verdict().exit_status, config.time_factor, run.outcome.error)
        status = finish(run, named) if finish and not as_json else run.verdict().exit_status
        kept_files = not snippet.collect or _keep_files(run, collect_to)
        if verbose:
            show_costs(run.phases, run.exits)
        if run.outcome.error is None and service.bases.lacks(image, network=network):
            await _make_base(service, image, stopped, network=network)
    return status or (0 if kept_files else OUR_STATUS)


def _keep_files(run: Run, folder: Path | None) -> bool:
    """Write the files that were asked for to `folder`; false if there are none to be had."""
    if run.files is None:
        return True
    try:
        if run.files.error is not None:
            raise run.files.error
        if folder is not None:
            from mayfly.cli.collected import write_files  # only here: other runs start sooner

            write_files(run.files.by_name, folder)
    except MayflyError as error:
        report(error)
        return False
    if not run.files.by_name:
        print("mayfly: the program left no file that --collect asks for", file=sys.stderr)
    return True


def _local_terminal(stopped: "asyncio.Future[int]") -> "LocalTerminal":
    from mayfly.cli.terminal import LocalTerminal

    return LocalTerminal(functools.partial(settle, stopped, 128 + signal.SIGINT))


async def _make_base(service: Service, image: InstalledImage, stopped: asyncio.Future[int], *, network: bool) -> None:
    """Make the snapshot from which later runs start, unless a signal comes."""
    kind = f"{image.manifest.language} {image.manifest.version}{' with a network' if network else ''}"
    print(f"mayfly: making a snapshot of {kind} for later runs (once; Ctrl-C skips it)", file=sys.stderr)
    making = asyncio.create_task(service.bases.make(image, network=network))
    waiting: set[asyncio.Future[Any]] = {making, stopped}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if stopped.done():
        making.cancel()
        await asyncio.wait([making])
        return
    try:
        making.result()
    except MayflyError as error:
        report(error)


async def _nothing(run: Run) -> None:
    await run.done.wait()


async def _show(run: Run, on_program: Callable[[], None] = lambda: None) -> None:
    """Pass the output on as it comes, and call `on_program` when the program itself begins. What
    building prints goes to standard error, so that standard output is the snippet's alone.
    """
    stdout, stderr = FdWriter(1), FdWriter(2)
    last = len(run.outcome.step_names) - 1
    building = True
    reader = Reader(run.record)
    while True:
        while (event := reader.take()) is not None:
            match event:
                case Stage():
                    building = event.step != last
                    if not building:
                        on_program()
                case Restored():
                    print(f"mayfly: {event.reason}; it goes on from its last save, and what it printed since comes again", file=sys.stderr)
                case CaseResult() if run.cases:
                    await stdout.write(f"{plain(line(event, run.cases))}\n".encode())
                case Stdout() | Stderr():
                    await (stdout if isinstance(event, Stdout) and not building else stderr).write(event.data)
        if not await reader.wait():
            break
    if run.cases:
        await stdout.write(f"{summary(run.cases)}\n".encode())
