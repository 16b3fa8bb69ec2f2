"""`mayfly kernel`: build the guests' kernel, or carry a built one between hosts as an OCI artifact.

The artifact's configuration says the architecture; its layers are the files that a machine needs.
"""

import hashlib
import json
import platform
import subprocess
import tempfile
from pathlib import Path

import click
import msgspec

import mayfly
from mayfly.cli.image import insecure_option, showing_progress
from mayfly.errors import ConfigError, HostError, RegistryError
from mayfly.files import atomic_write, file_digest
from mayfly.imagegen.build import source_of
from mayfly.imagegen.digests import digest_of
from mayfly.imagegen.oci.documents import (
    MANIFEST_TYPE,
    Descriptor,
    Source,
    descriptor_of,
    descriptor_of_file,
    fetch_document,
    read,
    read_artifact,
    write_artifact,
)
from mayfly.imagegen.oci.reference import RegistryReference, parse_reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.paths import KERNELS, cache_dir, kernel_path

SCRIPT = Path(mayfly.__file__).parent / "kernel" / "build"
ARTIFACT_TYPE = "application/vnd.mayfly.kernel.v1"
CONFIG_TYPE = "application/vnd.mayfly.kernel.config.v1+json"
FILE_TYPES = {"kernel": "application/vnd.mayfly.kernel.image.v1", "config": "application/vnd.mayfly.kernel.kconfig.v1"}
MAX_FILE = 256 << 20
CHUNK = 1 << 20


class KernelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The artifact's configuration: what machines the kernel is for."""

    arch: str


arch_option = click.option(
    "--arch", type=click.Choice(sorted(KERNELS)), default=platform.machine(), show_default=True, help="the architecture of the guests"
)


@click.group()
def cli() -> None:
    """Build, fetch and store the kernel that machines boot."""


@cli.command()
@arch_option
@click.option("--tarball", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="the kernel's source (tar, xz)")
def build(arch: str, tarball: Path | None) -> None:
    """Build the kernel from Debian's linux-source-6.12, or from --tarball; takes some minutes.

    Nothing happens when the kernel is there and its source and configuration have not changed.
    """
    source = ["--tarball", str(tarball.absolute())] if tarball else []
    if subprocess.run(["bash", str(SCRIPT), "--arch", arch, *source], check=False).returncode:
        raise HostError("the kernel was not built; the reason is above", hint="or fetch one: mayfly kernel pull REFERENCE")
    click.echo(kernel_path(arch))


@cli.command()
@click.argument("reference")
@insecure_option
def pull(reference: str, insecure: bool) -> None:
    """Install a kernel that `push` stored under REFERENCE (a tag, or @sha256:…; or oci:FOLDER)."""
    with showing_progress() as progress:
        path = install(source_of(parse_reference(reference), progress, insecure=insecure, offline=False))
    click.echo(path)


@cli.command()
@click.argument("reference")
@arch_option
@insecure_option
def push(reference: str, arch: str, insecure: bool) -> None:
    """Store this host's kernel in a registry under REFERENCE, for hosts that `pull` it."""
    target = parse_reference(reference)
    if not isinstance(target, RegistryReference):
        raise ConfigError(f"{reference} does not name a registry", hint="write it as registry/repository:tag")
    with showing_progress() as progress:
        digest = store(arch, RegistrySource(target, cache_dir() / "blobs", insecure=insecure, progress=progress))
    click.echo(f"{target.registry}/{target.repository}@{digest}")


def _files(arch: str) -> dict[str, Path]:
    """Kind of a file of the artifact -> where it is installed."""
    return {"kernel": kernel_path(arch), "config": kernel_path(arch).with_name("config")}


def store(arch: str, target: RegistrySource) -> str:
    """Put the installed kernel of `arch` into a registry; the artifact's digest.

    Raises:
        HostError: there is no kernel.
        RegistryError: the registry does not take it.
    """
    files = _files(arch)
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise HostError(f"there is no {missing[0]}", hint="make it first: mayfly kernel build")
    config = json.dumps({"arch": arch}, sort_keys=True).encode()
    layers = [descriptor_of_file(FILE_TYPES[kind], path) for kind, path in sorted(files.items())]
    data = write_artifact(ARTIFACT_TYPE, descriptor_of(CONFIG_TYPE, config), layers)
    for _, path in sorted(files.items()):
        target.push(path, file_digest(path))
    with tempfile.NamedTemporaryFile() as file:
        file.write(config)
        file.flush()
        target.push(Path(file.name), digest_of(config))
    target.push_manifest(data, MANIFEST_TYPE)
    return digest_of(data)


def install(source: Source) -> Path:
    """Install the kernel of an artifact for its architecture; the kernel's path.

    Raises:
        RegistryError: it is not a kernel that we pushed, or not what its digests say.
    """
    _, config, files = read_artifact(source)
    layers = {layer.media_type: layer for layer in files}
    if config.media_type != CONFIG_TYPE or set(layers) != set(FILE_TYPES.values()):
        raise RegistryError("this is not a kernel that `mayfly kernel push` stored", hint="images are fetched with: mayfly image pull")
    arch = read(KernelConfig, fetch_document(source, config), "configuration").arch
    if arch not in KERNELS:
        raise RegistryError(f"the kernel is for the unknown architecture {arch[:80]!r}", hint=f"known: {', '.join(sorted(KERNELS))}")
    if large := [layer for layer in layers.values() if layer.size > MAX_FILE]:
        raise RegistryError(f"the artifact has a file of {large[0].size} bytes; at most {MAX_FILE} are allowed")
    for kind, path in sorted(_files(arch).items()):  # the kernel comes last: where it is, its configuration is too
        _install_file(source, layers[FILE_TYPES[kind]], path)
    return kernel_path(arch)


def _install_file(source: Source, layer: Descriptor, path: Path) -> None:
    """Copy a layer to `path`, unless its bytes are not those of its digest."""
    found = hashlib.sha256()
    with source.blob(layer).open("rb") as blob, atomic_write(path) as file:
        while piece := blob.read(CHUNK):
            found.update(piece)
            file.write(piece)
        if f"sha256:{found.hexdigest()}" != layer.digest:
            raise RegistryError(f"a file of the artifact hashes to sha256:{found.hexdigest()}, not to {layer.digest}", hint="do not use it")
