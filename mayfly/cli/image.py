"""`mayfly image`, which is `imagegen` too."""

import contextlib
import datetime
import json
import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import rich.console
import rich.progress
from click.shell_completion import get_completion_class

import mayfly
from mayfly.cli.check import check_command
from mayfly.cli.features import FeaturesCommand
from mayfly.cli.messages import plain
from mayfly.errors import ConfigError, ImageNotFoundError
from mayfly.files import storing
from mayfly.host.config import Config
from mayfly.imagegen.build import Built, build, source_of
from mayfly.imagegen.cache import prune_cache
from mayfly.imagegen.languages import known_languages, load_language
from mayfly.imagegen.oci.artifact import export, pull, push
from mayfly.imagegen.oci.reference import RegistryReference, parse_reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.oci.signature import read_signer
from mayfly.imagegen.options import Options
from mayfly.imagegen.prepare import prepare
from mayfly.imagegen.progress import Advance, Progress
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.imagegen.rootfs.unpack import unpack
from mayfly.imagegen.sbom import spdx
from mayfly.images.manifest import COMPRESSIONS, load
from mayfly.images.store import image_folders, remove
from mayfly.paths import cache_dir, image_dir
from mayfly.units import MIB

COLUMNS = (
    rich.progress.TextColumn("{task.description}", markup=False),
    rich.progress.BarColumn(),
    rich.progress.DownloadColumn(binary_units=True),
    rich.progress.TransferSpeedColumn(),
)


class PlainProgress:
    """Lines on standard error, for a log."""

    def say(self, message: str) -> None:
        """Print the line."""
        click.echo(plain(message), err=True)

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Print the title with the size once, when it begins."""
        click.echo(plain(f"{title}, {total / MIB:.1f} MiB" if total else title), err=True)
        yield lambda _: None


class BarProgress:
    """Bars on a terminal's standard error, several at once."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars

    def say(self, message: str) -> None:
        """Print the line above the bars."""
        self._bars.console.print(plain(message), markup=False, highlight=False)

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show a bar, which stays when the work is done."""
        bar = self._bars.add_task(plain(title), total=total)
        yield lambda done: self._bars.advance(bar, done)


@contextlib.contextmanager
def showing_progress() -> Iterator[Progress]:
    """Bars if standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    with rich.progress.Progress(*COLUMNS, console=rich.console.Console(stderr=True)) as bars:
        yield BarProgress(bars)


insecure_option = click.option("--insecure", is_flag=True, help="Plain http to a registry that is not on this host.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
arch_option = click.option("--arch", default=platform.machine(), show_default=True, help="The machine type of the guests.")


def installed_names(*_: object) -> list[str]:
    """What may stand for an image on this host: `rust`, `rust@1.63`."""
    return sorted({folder.parent.name for folder in image_folders()})


sign_option = click.option(
    "--sign-with", type=click.Path(path_type=Path, dir_okay=False), help="Sign it with the secret key in this file of minisign's."
)


image_argument = click.argument("image", metavar="LANGUAGE[@VERSION]", shell_complete=installed_names)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mayfly.__version__, prog_name="mayfly image")
def cli() -> None:
    """Make the images that snippets run in: a language's toolchain out of an OCI image, as an
    initramfs.
    """


@cli.command("build", cls=FeaturesCommand)
@click.argument("language", metavar="LANGUAGE[@VERSION]", shell_complete=lambda *_: known_languages())
@click.option("--image", "reference", metavar="REF", help="registry/repository:tag, or oci:FOLDER[:NAME]. Default: the language's own.")
@arch_option
@click.option("--compress", "compression", type=click.Choice(COMPRESSIONS), default="zstd", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="The folder of the image. Default: where mayfly looks for it."
)
@insecure_option
@click.option("--offline", is_flag=True, help="Ask no registry: everything is in the cache from an earlier build.")
@click.option("--force", is_flag=True, help="Build even if the image is there, made of the same things.")
@click.option(
    "--prepare-with",
    default="",
    metavar="COMMAND",
    help="Put before the command that runs prepare steps, as scripts/with-kvm of a checkout where no machine runs.",
)
@click.option(
    "--package", "packages", multiple=True, metavar="NAME", help="A third-party package, as the language writes it; several times."
)
@click.option("--features", expose_value=False, metavar="A,B", help="Of the crate before it, those that are not on anyway.")
@click.option("--packages-from", default="", metavar="URL", help="The registry of packages. Default: the language's own.")
@click.option("--max-entries", default=Limits.entries, show_default=True, help="Names that the image may have.")
@click.option("--max-unpacked", default=Limits.unpacked, show_default=True, help="Bytes that its layers may unpack to.")
@click.option("--max-ratio", default=Limits.ratio, show_default=True, help="How many times its size a layer may unpack to.")
@json_option
def build_command(
    language: str,
    reference: str | None,
    arch: str,
    compression: str,
    output: Path | None,
    insecure: bool,
    offline: bool,
    force: bool,
    prepare_with: str,
    packages: tuple[str, ...],
    packages_from: str,
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
        offline=offline,
        force=force,
        prepare_with=tuple(shlex.split(prepare_with)),
        packages=packages,
        packages_from=packages_from,
        limits=Limits(entries=max_entries, unpacked=max_unpacked, ratio=max_ratio),
        folder=output.absolute() if output else None,
    )
    with showing_progress() as progress:
        built = build(options, progress)
    click.echo(built.manifest.to_json() if as_json else plain(_outcome(built)), nl=not as_json)


@cli.command("prepare")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("paths", nargs=-1)
def prepare_command(folder: Path, out: Path, paths: tuple[str, ...]) -> None:
    """Run the steps of the image in FOLDER in a machine, and write what is then in PATHS of its
    root to the tar OUT.

    `build` does this by itself; as a command of its own it is for --prepare-with.
    """
    with showing_progress() as progress:
        prepare(folder, paths, out, Limits(), progress)


def _outcome(built: Built) -> str:
    manifest = built.manifest
    return (
        f"{built.folder}: {manifest.language} {manifest.version}, {'built' if built.fresh else 'up to date'}\n"
        f"  from     {manifest.source.reference}\n"
        f"           {manifest.source.manifest_digest}\n"
        f"  compiler {manifest.compiler or 'not asked: its version is what the image shows'}\n"
        f"  archive  {manifest.initramfs_size / MIB:.1f} MiB ({manifest.compression}), "
        f"unpacked {manifest.unpacked_size / MIB:.1f} MiB in {manifest.entries} entries\n"
        f"  memory   {manifest.memory // MIB} MiB for a machine"
    )


@cli.command("list")
@json_option
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
        click.echo(plain(f"{name:12} {manifest.version:10} {manifest.arch:8} {size:14} {manifest.source.reference}"))


def _folder(image: str, arch: str) -> Path:
    """The image's folder. The names come from the user and become part of a path, so they must be
    plain.

    Raises:
        ImageNotFoundError: there is none.
    """
    for name in (image, arch):
        if "/" in name or name.startswith("."):
            raise ImageNotFoundError(f"there is no image {name!r}", hint="see what there is: imagegen list")
    folder = image_dir(image, arch)
    if not folder.is_dir():
        there = sorted({one.parent.name for one in image_folders() if one.name == arch})
        known = known_languages()
        hint = f"build it: imagegen build {image}" if image.partition("@")[0] in known else f"languages are {', '.join(known)}"
        has = f"; images here are {', '.join(there)}" if there else ""
        raise ImageNotFoundError(f"there is no image {image!r} for {arch} machines", hint=hint + has)
    return folder


@cli.command("inspect")
@image_argument
@arch_option
@json_option
@click.option("--sbom", is_flag=True, help="Print what it is made of, as SPDX 2.3 in JSON.")
def inspect_command(image: str, arch: str, as_json: bool, sbom: bool) -> None:
    """Show what an image is, was made of, and needs, and where its bytes are."""
    folder = _folder(image, arch)
    manifest = load(folder)
    if sbom:
        created = datetime.datetime.fromtimestamp((folder / "manifest.json").stat().st_mtime, datetime.UTC)
        click.echo(json.dumps(spdx(manifest, created), indent=2))
        return
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    lines = [
        _outcome(Built(manifest=manifest, folder=folder, fresh=False)).replace(", up to date", ""),
        f"  end      {manifest.end_marker}",
    ]
    lines += [f"  {step.name:8} {' '.join(step.argv)}" for step in manifest.steps]
    lines += [f"  warm-up  {' '.join(step.argv)}" for step in manifest.warmup.steps]
    lines += [f"  standby  {' '.join(step.standby)}" for step in manifest.steps if step.standby]
    lines += [f"  package  {package.name} {package.version} {package.digest}" for package in manifest.packages]
    lines += [f"  env      {key}={value}" for key, value in sorted(manifest.env.items())]
    names = {*manifest.sizes, *manifest.pruned}
    rows = sorted(((manifest.sizes.get(name, 0), manifest.pruned.get(name, 0), name) for name in names), reverse=True)
    rows.append((sum(manifest.sizes.values()), sum(manifest.pruned.values()), "in all"))
    lines += ["       MiB    pruned  directory", *(f"  {kept / MIB:8.1f}  {pruned / MIB:8.1f}  {name}" for kept, pruned, name in rows)]
    click.echo(plain("\n".join(lines)))


@cli.command("unpack")
@image_argument
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@arch_option
def unpack_command(image: str, folder: Path, arch: str) -> None:
    """Write an image's tree into FOLDER, which is empty or not there, for a look inside."""
    count = unpack(_folder(image, arch), folder)
    click.echo(f"{folder}: {count} entries")


@cli.command("rm")
@image_argument
@arch_option
@json_option
def rm_command(image: str, arch: str, as_json: bool) -> None:
    """Remove an image. Machines that run from it are not disturbed."""
    folder = _folder(image, arch)
    with storing(folder):
        remove(folder)
    click.echo(json.dumps({"removed": str(folder)}) if as_json else f"removed {folder}")


@cli.command("prune")
@json_option
def prune_command(as_json: bool) -> None:
    """Remove from the cache what no image on this host was made of."""
    removed = prune_cache()
    size = sum(size for _, size in removed)
    text = f"removed {len(removed)} files of {size / MIB:.1f} MiB from the cache"
    click.echo(json.dumps({"removed": [str(path) for path, _ in removed], "bytes": size}) if as_json else text)


def in_registry(reference: str) -> RegistryReference:
    """The reference of something in a registry. Raises ConfigError: it is of a folder."""
    found = parse_reference(reference)
    if not isinstance(found, RegistryReference):
        raise ConfigError(f"{reference} is not in a registry", hint="write it as HOST/NAME:TAG; to write a folder: imagegen export")
    return found


@cli.command("push")
@image_argument
@click.argument("reference")
@arch_option
@insecure_option
@sign_option
@json_option
def push_command(image: str, reference: str, arch: str, insecure: bool, sign_with: Path | None, as_json: bool) -> None:
    """Store an image in a registry under REFERENCE, for hosts that `pull` it."""
    target = in_registry(reference)
    signer = read_signer(sign_with) if sign_with else None
    with showing_progress() as progress:
        digest = push(_folder(image, arch), RegistrySource(target, cache_dir() / "blobs", insecure=insecure, progress=progress), signer)
    stored = f"{target.registry}/{target.repository}@{digest}"
    click.echo(json.dumps({"reference": stored, "digest": digest}) if as_json else f"pushed {stored}")


@cli.command("pull")
@click.argument("reference")
@click.option("--as", "name", default="", metavar="LANGUAGE@VERSION", help="Install it as this, not as its language's default.")
@insecure_option
@json_option
def pull_command(reference: str, name: str, insecure: bool, as_json: bool) -> None:
    """Install an image that was pushed to a registry under REFERENCE (a tag, or @sha256:…)."""
    _install(reference, name, insecure, as_json)


@cli.command("export")
@image_argument
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@arch_option
@sign_option
def export_command(image: str, folder: Path, arch: str, sign_with: Path | None) -> None:
    """Write an image into FOLDER, to be carried to a host without network and imported there."""
    click.echo(f"{folder}: {export(_folder(image, arch), folder, read_signer(sign_with) if sign_with else None)}")


@cli.command("import")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--as", "name", default="", metavar="LANGUAGE@VERSION", help="Install it as this, not as its language's default.")
@json_option
def import_command(folder: Path, name: str, as_json: bool) -> None:
    """Install an image from the FOLDER that `export` wrote."""
    _install(f"oci:{folder}", name, False, as_json)


def _install(reference: str, name: str, insecure: bool, as_json: bool) -> None:
    with showing_progress() as progress:
        source = source_of(parse_reference(reference), progress, insecure=insecure, offline=False)
        manifest, folder = pull(source, name, progress, Config.load().image_keys)
    click.echo(manifest.to_json() if as_json else plain(f"{folder}: {manifest.language} {manifest.version}"), nl=not as_json)


cli.add_command(check_command)


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script for SHELL; for bash: `eval "$(imagegen completion bash)"`."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "imagegen", "_IMAGEGEN_COMPLETE").source())
