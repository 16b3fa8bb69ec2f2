"""The command `imagegen`."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import rich.console
import rich.progress

import mayfly
from imagegen.build import Built, Options, build
from imagegen.languages import known_languages, load_language
from imagegen.layers import Limits
from imagegen.prepare import prepare
from imagegen.progress import Advance, Progress
from imagegen.reference import parse_reference
from imagegen.store import image_folders, remove
from mayfly.errors import ConsoleTailError, ImageNotFoundError, MayflyError
from mayfly.manifest import COMPRESSIONS, load
from mayfly.paths import image_dir

MIB = 1 << 20
CONSOLE_SHOWN = 4096


class PlainProgress:
    """Lines on standard error, for a log."""

    def say(self, message: str) -> None:
        """Print the line."""
        click.echo(message, err=True)

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Print the title with the size once, when it begins."""
        click.echo(f"{title}, {total / MIB:.1f} MiB" if total else title, err=True)
        yield lambda _: None


class BarProgress:
    """Bars on a terminal's standard error."""

    def __init__(self) -> None:
        self._console = rich.console.Console(stderr=True)

    def say(self, message: str) -> None:
        """Print the line."""
        self._console.print(message, markup=False, highlight=False)

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show a bar until the work is done."""
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.DownloadColumn(binary_units=True),
            rich.progress.TransferSpeedColumn(),
        )
        with rich.progress.Progress(*columns, console=self._console) as bars:
            bar = bars.add_task(title, total=total)
            yield lambda done: bars.advance(bar, done)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mayfly.__version__, prog_name="imagegen")
def cli() -> None:
    """Make the images that snippets run in: a language's toolchain out of an OCI image, as an initramfs."""


@cli.command("build")
@click.argument("language", metavar="LANGUAGE[@VERSION]", shell_complete=lambda *_: known_languages())
@click.option("--image", "reference", metavar="REF", help="registry/repository:tag, or oci:FOLDER[:tag]. Default: the language's own.")
@click.option("--arch", default="x86_64", show_default=True, help="The machine type of the guests.")
@click.option("--compress", "compression", type=click.Choice(COMPRESSIONS), default="zstd", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="The folder of the image. Default: where mayfly looks for it."
)
@click.option("--insecure", is_flag=True, help="Plain http to a registry that is not on this host.")
@click.option("--force", is_flag=True, help="Build even if the image is there, made of the same things.")
@click.option(
    "--prepare-with",
    default="",
    metavar="COMMAND",
    help="Put before the command that runs prepare steps, as scripts/with-kvm where no machine runs.",
)
@click.option("--max-entries", default=Limits.entries, show_default=True, help="Names that the image may have.")
@click.option("--max-unpacked", default=Limits.unpacked, show_default=True, help="Bytes that its layers may unpack to.")
@click.option("--max-ratio", default=Limits.ratio, show_default=True, help="How many times its size a layer may unpack to.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def build_command(
    language: str,
    reference: str | None,
    arch: str,
    compression: str,
    output: Path | None,
    insecure: bool,
    force: bool,
    prepare_with: str,
    max_entries: int,
    max_unpacked: int,
    max_ratio: int,
    as_json: bool,
) -> None:
    """Build the image of LANGUAGE: its default, or one of a VERSION beside it."""
    name, _, version = language.partition("@")
    described = load_language(name)
    options = Options(
        language=described,
        version=version,
        reference=parse_reference(reference or described.reference(version)),
        arch=arch,
        compression=compression,
        insecure=insecure,
        force=force,
        prepare_with=tuple(shlex.split(prepare_with)),
        limits=Limits(entries=max_entries, unpacked=max_unpacked, ratio=max_ratio),
        folder=output.absolute() if output else None,
    )
    built = build(options, _progress())
    click.echo(built.manifest.to_json() if as_json else _outcome(built), nl=not as_json)


def _progress() -> Progress:
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


@cli.command("prepare")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("paths", nargs=-1, required=True)
def prepare_command(folder: Path, out: Path, paths: tuple[str, ...]) -> None:
    """Run the steps of the image in FOLDER in a machine, and write what is then in PATHS of its root to the tar OUT.

    `build` does this by itself for languages with prepare steps; as a command of its own it is for --prepare-with.
    """
    prepare(folder, paths, out, Limits(), _progress())


def _outcome(built: Built) -> str:
    manifest = built.manifest
    return (
        f"{built.folder}: {manifest.language} {manifest.version}, {'built' if built.fresh else 'up to date'}\n"
        f"  from     {manifest.source.reference}\n"
        f"           {manifest.source.manifest_digest}\n"
        f"  archive  {manifest.initramfs_size / MIB:.1f} MiB ({manifest.compression}), "
        f"unpacked {manifest.unpacked_size / MIB:.1f} MiB in {manifest.entries} entries\n"
        f"  memory   {manifest.memory // MIB} MiB for a machine"
    )


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of manifests.")
def list_command(as_json: bool) -> None:
    """List the images on this host."""
    images = [(folder.parent.name, load(folder)) for folder in image_folders()]
    if as_json:
        click.echo(json.dumps([json.loads(manifest.to_json()) for _, manifest in images], indent=2))
        return
    if not images:
        click.echo("no images yet; build one: imagegen build rust", err=True)
    for name, manifest in images:
        size = f"{manifest.initramfs_size / MIB:.0f} MiB {manifest.compression}"
        click.echo(f"{name:12} {manifest.version:10} {manifest.arch:8} {size:14} {manifest.source.reference}")


def _folder(language: str, arch: str) -> Path:
    """The image's folder. The names come from the user and become part of a path, so they must be plain."""
    for name in (language, arch):
        if "/" in name or name.startswith("."):
            raise ImageNotFoundError(f"there is no image {name!r}", hint="see what there is: imagegen list")
    return image_dir(language, arch)


def _installed(*_: object) -> list[str]:
    return sorted({folder.parent.name for folder in image_folders()})


@cli.command("inspect")
@click.argument("language", shell_complete=_installed)
@click.option("--arch", default="x86_64", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect_command(language: str, arch: str, as_json: bool) -> None:
    """Show what the image of LANGUAGE is, was made of, and needs."""
    folder = _folder(language, arch)
    manifest = load(folder)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    click.echo(_outcome(Built(manifest=manifest, folder=folder, fresh=False)).replace(", up to date", ""))
    click.echo(f"  end      {manifest.end_marker}")
    for step in manifest.steps:
        click.echo(f"  {step.name:8} {' '.join(step.argv)}")
    for key, value in sorted(manifest.env.items()):
        click.echo(f"  env      {key}={value}")


@cli.command("rm")
@click.argument("language", shell_complete=_installed)
@click.option("--arch", default="x86_64", show_default=True)
def rm_command(language: str, arch: str) -> None:
    """Remove the image of LANGUAGE. Machines that run from it are not disturbed."""
    folder = _folder(language, arch)
    if not folder.is_dir():
        raise ImageNotFoundError(f"{folder}: no image there", hint="see what there is: imagegen list")
    remove(folder)
    click.echo(f"removed {folder}")


def main() -> None:
    """Run the command; an error of ours is two lines on standard error and status 1."""
    try:
        cli()
    except MayflyError as error:
        click.echo(f"imagegen: {error.message}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
        if isinstance(error, ConsoleTailError) and error.console:
            click.echo(f"  the machine's console ends with:\n{error.console[-CONSOLE_SHOWN:]}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
