"""Packages of Rust: crates of a sparse index, unpacked to where cargo finds them without a network,
compiled by the prepare steps of Rust's file. Nothing of a crate is run on this host.

The Cargo Book: source replacement, configuration.
"""

import json
import re
import tomllib
from collections.abc import Iterable

from mayfly.errors import ConfigError, LayerError, RegistryError
from mayfly.imagegen.digests import is_digest
from mayfly.imagegen.packages.archives import Packed, read_tgz
from mayfly.imagegen.packages.cfg import Programs
from mayfly.imagegen.packages.crate_index import NAME, Index, spec
from mayfly.imagegen.packages.crate_resolver import Crate, resolve
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package

MAX_MANIFEST = 1 << 20
"""Bytes of a Cargo.toml that is looked into."""
ROOT = "mayfly_packages"
FOLDER = "usr/lib/mayfly/rust"
_FEATURE = r"[A-Za-z0-9_][A-Za-z0-9_+.-]*"
_ASKED = re.compile(rf"({NAME.pattern})(?:@([^\[\]]+))?(?:\[((?:{_FEATURE})(?:,{_FEATURE})*)\])?")
CONFIG = f"""\
# Crates that are not in the image cannot be had.
[source.crates-io]
replace-with = "image"
[source.image]
directory = "/{FOLDER}/vendor"
[net]
offline = true
# As snippets are compiled.
[profile.dev]
opt-level = 1
codegen-units = 1
debug = false
incremental = false
strip = "debuginfo"
[profile.dev.build-override]
opt-level = 1
codegen-units = 1
"""
RECORD = f"""\
#!/bin/sh
# rustc, for cargo: what it is to find the crates by, into a file of arguments.
case " $* " in
*" --crate-name {ROOT} "*)
    previous=
    for word; do
        case $previous in --extern | -L) printf '%s\\n' "$previous" "$word" ;; esac
        previous=$word
    done >/var/cache/rust/arguments
    ;;
esac
exec "$@"
"""


def add(target: Target) -> tuple[Package, ...]:
    """Unpack what is asked for, and all that it needs, to where cargo finds it.

    Raises:
        ConfigError, ImageError, LayerError, RegistryError: as for any package.
    """
    downloads = target.downloads()
    index = Index(downloads, target.version)
    wanted = [parse(text) for text in target.options.packages]
    added = []
    chosen = resolve(wanted, index, programs(target))
    for crate in chosen:
        folder = f"{FOLDER}/vendor/{crate.label}"
        digest = f"sha256:{crate.known.cksum}"
        target.place(folder, [_text(".cargo-checksum.json", json.dumps({"files": {}, "package": crate.known.cksum}))])
        if not crate.here:
            target.place(folder, [_text("Cargo.toml", _empty(crate)), _text("src/lib.rs", "")])
            continue
        if not is_digest(digest):
            raise RegistryError(f"{crate.label} has no digest in the index", hint="give another --packages-from")
        url = index.address(crate.known)
        path = downloads.file(url, digest, target.limits.unpacked, crate.label)
        try:
            files = list(read_tgz(path, target.spools, target.limits))
            target.place(folder, (file for file in files if file.name != ".cargo-checksum.json"))
        except LayerError as error:
            raise LayerError(f"{url}: {error.message}", hint=error.hint) from error
        license_ = _license(target, files)
        added.append(Package(kind="cargo", name=crate.known.name, version=crate.known.vers, digest=digest, source=url, license=license_))
    target.place(".cargo", [_text("config.toml", CONFIG)])
    target.place(f"{FOLDER}/packages", [_text("Cargo.toml", _root(wanted, chosen)), _text("src/main.rs", "fn main() {}\n")])
    target.place(FOLDER, [Packed(name="record", executable=True, content=RECORD.encode())])
    return tuple(added)


def programs(target: Target) -> Programs:
    """What the image's compiler makes programs for: those of its C library."""
    arch = target.options.arch
    musl = target.tree.find(f"lib/ld-musl-{arch}.so.1".encode()) is not None
    return Programs(arch, "musl" if musl else "gnu")


def _text(name: str, text: str) -> Packed:
    return Packed(name=name, executable=False, content=text.encode())


def _root(wanted: Iterable[tuple[str, str, frozenset[str]]], chosen: Iterable[Crate]) -> str:
    """The manifest of a program that needs what was asked for, in the versions that were chosen."""
    lines = ["[package]", f'name = "{ROOT}"', 'version = "0.0.0"', 'edition = "2018"', "[workspace]", "[dependencies]"]
    for name, req, features in wanted:
        (version,) = (crate.known.vers for crate in chosen if crate.known.name == name and req in crate.asked)
        lines.append(f"{name} = {{ version = {json.dumps(f'={version}')}, features = {json.dumps(sorted(features))} }}")
    return "\n".join([*lines, ""])


def _empty(crate: Crate) -> str:
    """The manifest of an empty crate, in the place of one for other systems: cargo wants to know
    their versions, and never compiles them.
    """
    lines = ["[package]", f"name = {json.dumps(crate.known.name)}", f"version = {json.dumps(crate.known.vers)}", "[features]"]
    features = {*crate.known.all_features(), "default"}
    return "\n".join([*lines, *(f"{json.dumps(name)} = []" for name in sorted(features)), ""])


def _license(target: Target, files: Iterable[Packed]) -> str:
    manifest = next((file for file in files if file.name == "Cargo.toml"), None)
    if manifest is None or (not isinstance(manifest.content, bytes) and manifest.content.size > MAX_MANIFEST):
        return ""
    try:
        return str(tomllib.loads(target.spools.read(manifest.content).decode())["package"].get("license", ""))
    except (ValueError, KeyError, AttributeError):
        return ""


def parse(text: str) -> tuple[str, str, frozenset[str]]:
    """`serde@1[derive]` as name, requirement and features.

    Raises:
        ConfigError: it makes no sense.
        ImageError: the requirement is no range of versions.
    """
    asked = _ASKED.fullmatch(text)
    if asked is None:
        raise ConfigError(f"--package {text!r} is not a crate", hint="write it as serde, serde@1 or serde@1 --features derive")
    spec(asked[2] or "*", "--package")
    return asked[1], asked[2] or "*", frozenset(asked[3].split(",") if asked[3] else ())
