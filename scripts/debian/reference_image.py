"""Make an OCI image of a language from Debian's packages, for hosts that reach no registry.

With several --arch it has an index of as many platforms. For another architecture than this
machine's the packages are only unpacked, and what their scripts do foreign.py does as far as it
matters.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from mayfly import files, paths
from scripts.debian import foreign
from scripts.debian import root as debianroot
from scripts.debian.mirror import DEBIAN, KEYRING, SUITE, MirrorError, mirror

PACKAGES = {
    "rust": ("rustc", "gcc", "libc6-dev"),
    "go": ("golang-go",),
    "python": ("python3", "libstdc++6"),  # wheels with machine code need it, and the images on Docker Hub have it
    "javascript": ("nodejs", "tzdata"),
    "typescript": ("nodejs", "esbuild", "tzdata"),
    "java": ("default-jdk-headless", "junit5", "libassertj-core-java", "tzdata"),
    "c": ("gcc", "libc6-dev", "tzdata"),
    "cpp": ("g++", "libc6-dev", "tzdata"),
    "wasm": ("base-files",),
    "rust-wasm": ("rustc", "libstd-rust-dev-wasm32", "lld"),
    "c-wasm": ("clang", "lld", "wasi-libc", "libclang-rt-dev-wasm32"),
}
FOLDERS = {"java": ("usr/share/man/man1",)}
"""Folders that scripts of a language's packages expect, and LEFT_OUT takes away."""
SAME = {"go-wasm": "go"}
"""Languages whose image is the one of another language."""
SUITES = ("trixie", "bookworm")
EDITION = 1
"""Raise it when `make` writes something else from the same data: kept layouts are made again."""
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
NOT_IN_A_LAYER = (
    *("./dev/*", "./proc/*", "./sys/*", "./run/*", "./tmp/*"),
    *("./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*"),
    "./var/cache/ldconfig/*",  # has inode numbers; all else is the same whenever it is made of the same packages
)
MACHINE = platform.machine()
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LAYER = "application/vnd.oci.image.layer.v1.tar"
PROXY = Path(__file__).with_name("rustup-proxy.rs")
DOCKER_RUST = f"""
version=$(chroot "$root" rustc --version | cut -d' ' -f2)
name=$version-{MACHINE}-unknown-linux-gnu
toolchain=/usr/local/rustup/toolchains/$name
mkdir -p "$root$toolchain/bin" "$root$toolchain/lib" "$root/usr/local/cargo/bin"
cp "$2" "$root/tmp/proxy.rs"
chroot "$root" rustc --edition 2021 -C opt-level=s -C strip=symbols -o /usr/local/cargo/bin/rustup /tmp/proxy.rs
rm "$root/tmp/proxy.rs"
mv "$root/usr/bin/rustc" "$root/usr/bin/rustdoc" "$root$toolchain/bin/"
mv "$root"/usr/lib/{MACHINE}-linux-gnu/librustc_driver-*.so "$root"/usr/lib/{MACHINE}-linux-gnu/libLLVM.so.* "$root$toolchain/lib/"
mv "$root/usr/lib/rustlib" "$root$toolchain/lib/"
ln "$root/usr/local/cargo/bin/rustup" "$root/usr/local/cargo/bin/rustc"
ln "$root/usr/local/cargo/bin/rustup" "$root/usr/local/cargo/bin/rustdoc"
printf 'default_toolchain = "%s"\\nprofile = "minimal"\\nversion = "12"\\n' "$name" >"$root/usr/local/rustup/settings.toml"
chmod -R a+w "$root/usr/local/rustup" "$root/usr/local/cargo"
chroot "$root" ldconfig
"""
DOCKER_GO = """
programs=$(realpath "$root"/usr/lib/go-1.*)
sources=$(realpath "$root"/usr/share/go-1.*)
find "$programs" -type l -delete
mv "$sources" "$root/usr/local/go"
cp -a "$programs/." "$root/usr/local/go/"
rm -r "$programs" "$root/usr/lib/go" "$root/usr/bin/go" "$root/usr/bin/gofmt"
mkdir -p "$root/go/src" "$root/go/bin"
chmod -R 1777 "$root/go"
"""
DOCKER = {
    # language: script, Env, WorkingDir
    "rust": (DOCKER_RUST, (f"PATH=/usr/local/cargo/bin:{PATH}", "RUSTUP_HOME=/usr/local/rustup", "CARGO_HOME=/usr/local/cargo"), "/"),
    "go": (DOCKER_GO, (f"PATH=/go/bin:/usr/local/go/bin:{PATH}", "GOTOOLCHAIN=local", "GOPATH=/go"), "/go"),
}
"""How a language's image on Docker Hub (docker.io/library/…) differs from Debian's packages."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("language", choices=sorted({*PACKAGES, *SAME}))
    parser.add_argument("folder", type=Path, help="where the OCI layout goes; replaced if it is one already")
    parser.add_argument("--layout", choices=("debian", "docker"), default="debian", help="where programs lie in it")
    parser.add_argument("--suite", choices=SUITES, default=SUITE, help="the Debian release (default: %(default)s)")
    parser.add_argument(
        "--with", dest="more", action="append", default=[], metavar="PACKAGE", help="a package of Debian's that it has besides"
    )
    parser.add_argument("--arch", choices=sorted(DEBIAN), action="append", help=f"a platform of it (default: {MACHINE})")
    options = parser.parse_args()
    options.language = SAME.get(options.language, options.language)
    arches = options.arch or [MACHINE]
    if options.layout == "docker" and arches != [MACHINE]:
        parser.error(f"--layout docker is there for {MACHINE} only: it runs the image's programs")
    if options.layout == "docker" and options.language not in DOCKER:
        parser.error(f"--layout docker is there for {', '.join(DOCKER)}")
    if options.folder.exists() and not (options.folder / "oci-layout").exists() and any(options.folder.iterdir()):
        sys.exit(f"reference-image: {options.folder} holds something that is no OCI layout; give another folder")
    made = [cached(options.language, options.layout, options.suite, arch, tuple(options.more)) for arch in arches]
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".reference-image.", dir=options.folder.parent) as part:
        for layout in made:
            shutil.copytree(layout, Path(part) / "layout", copy_function=link_or_copy, dirs_exist_ok=True)
        if len(made) > 1:
            write_index(Path(part) / "layout", [entry for layout in made for entry in platforms(layout)])
        if options.folder.exists():
            shutil.rmtree(options.folder)
        (Path(part) / "layout").rename(options.folder)
    print(f"oci:{options.folder}")


def link_or_copy(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)  # of another platform's layout: the same blob, or the index, which is written anew
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def cached(language: str, layout: str, suite: str, arch: str, more: tuple[str, ...] = ()) -> Path:
    """The layout in the cache, made first if this recipe has never been followed here."""
    base = paths.cache_dir() / "reference-images"
    base.mkdir(parents=True, exist_ok=True)
    moved = (DOCKER[language], PROXY.read_text()) if layout == "docker" else ()
    unpacked = (debianroot.ESSENTIAL, debianroot.LINKS, foreign.EDITION) if arch != MACHINE else ()
    packages = (*PACKAGES[language], *more)
    recipe = json.dumps([EDITION, packages, LEFT_OUT, NOT_IN_A_LAYER, moved, unpacked])
    folder = base / f"{language}-{suite}-{layout}-{arch}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with files.locked(folder):
        if not folder.exists():
            print(f"reference-image: making {language} ({layout}, {arch}) from Debian {suite}; a minute or two", file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix=".part.", dir=base) as part:
                make(language, packages, layout, suite, arch, Path(part))
                (Path(part) / "layout").chmod(0o755)
                (Path(part) / "layout").rename(folder)
    return folder


def check_host() -> None:
    missing = [program for program in ("mmdebstrap", "apt-get", "tar", "zstd") if shutil.which(program) is None]
    if missing:
        sys.exit(f"reference-image: {', '.join(missing)} missing: apt-get install mmdebstrap zstd")
    if not KEYRING.exists():
        sys.exit(f"reference-image: {KEYRING} missing: apt-get install debian-archive-keyring")


def make(language: str, packages: tuple[str, ...], layout: str, suite: str, arch: str, part: Path) -> None:
    """Make the layout `part`/layout: a base layer, and the toolchain's as the difference to it."""
    check_host()
    if arch == MACHINE:
        install(language, packages, layout, suite, part)
    else:
        unpack(packages, suite, arch, part)
    layers = part / "layout" / "blobs" / "sha256"
    layers.mkdir(parents=True)
    write_difference(part / "base.tar", part / "full.tar", part / "toolchain.tar")
    base = add_layer(layers, part / "base.tar", "gzip")
    toolchain = add_layer(layers, part / "toolchain.tar", "zstd")
    run = DOCKER[language][1:] if layout == "docker" else ((f"PATH={PATH}",), "/")
    write_documents(part / "layout", arch, run, [base, toolchain])


def unpack(wanted: tuple[str, ...], suite: str, arch: str, part: Path) -> None:
    """Write base.tar and full.tar of packages whose scripts are not run."""
    for name, packages in (("base", ()), ("full", wanted)):
        tree = part / name
        try:
            debianroot.unpack(tree, [*debianroot.ESSENTIAL, *packages], DEBIAN[arch], suite=suite)
            debianroot.finish(tree)
            foreign.configure(tree, arch)
        except debianroot.HostFilesError as error:
            sys.exit(f"reference-image: {error}")
        excludes = [f"--exclude=./{pattern.removeprefix('.').removeprefix('/')}" for pattern in (*LEFT_OUT, *NOT_IN_A_LAYER)]
        owner = ["--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--sort=name"]
        subprocess.run(["tar", *owner, *excludes, "-C", tree, "-cf", part / f"{name}.tar", "."], check=True)
        shutil.rmtree(tree)


def install(language: str, packages: tuple[str, ...], layout: str, suite: str, part: Path) -> None:
    """Write base.tar and full.tar of packages that are installed as on any Debian."""
    try:
        source = mirror()
    except MirrorError as error:
        sys.exit(f"reference-image: {error}")
    excludes = " ".join(f"--exclude='{pattern}'" for pattern in NOT_IN_A_LAYER)
    tar = f'tar --one-file-system --numeric-owner --mtime=@0 --sort=name {excludes} -C "$1" -cf'
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=essential",
        f"--include={','.join(packages)}",
        f"--keyring={KEYRING}",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        f"--essential-hook={tar} '{part / 'base.tar'}' .",
        *(f'--essential-hook=mkdir -p "$1/{folder}"' for folder in FOLDERS.get(language, ())),
        *(docker_hooks(language, part) if layout == "docker" else ()),
        f"--customize-hook={tar} '{part / 'full.tar'}' .",
        suite,
        "/dev/null",
        source,
    ]
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0", "TMPDIR": str(part)}
    if subprocess.run(command, env=environment).returncode != 0:
        sys.exit("reference-image: mmdebstrap failed, see above; without root it needs user namespaces and newuidmap (package uidmap)")


def docker_hooks(language: str, part: Path) -> list[str]:
    """Move the toolchain to its place in the language's image on Docker Hub.

    Rust's rustc is a proxy there, as rustup's.
    """
    script = part / "as-docker"
    script.write_text(f"#!/bin/sh\nset -eu\nroot=$1\n{DOCKER[language][0]}")
    return [f"--customize-hook=sh '{script}' \"$1\" '{PROXY}'"]


def write_difference(base: Path, full: Path, out: Path) -> None:
    """Write the layer from `base` to `full`: new or changed members, whiteouts for removed ones."""
    with tarfile.open(base) as old_tar, tarfile.open(full) as new_tar, tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as layer:
        old = {member.name: fingerprint(old_tar, member) for member in old_tar}
        names = set()
        for member in new_tar:
            names.add(member.name)
            if old.get(member.name) == fingerprint(new_tar, member):
                continue
            layer.addfile(member, new_tar.extractfile(member) if member.isfile() else None)
        gone = sorted(name for name in old if name not in names and str(Path(name).parent) in names | {"."})
        for name in gone:
            whiteout = tarfile.TarInfo(str(Path(name).parent / f".wh.{Path(name).name}"))
            whiteout.mode = stat.S_IRUSR | stat.S_IWUSR
            layer.addfile(whiteout)


def fingerprint(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    file = tar.extractfile(member) if member.isfile() else None
    content = hashlib.sha256()
    while file is not None and (data := file.read(1 << 20)):
        content.update(data)
    return (member.type, member.mode, member.uid, member.gid, member.linkname, member.size, content.digest())


def add_layer(blobs: Path, tar: Path, compression: str) -> tuple[dict[str, object], str]:
    """Compress a tar into the blobs; return its descriptor and its diff_id."""
    with tar.open("rb") as file:
        diff_id = hashlib.file_digest(file, "sha256").hexdigest()
    packed = tar.with_suffix(f".{compression}")
    with tar.open("rb") as source, packed.open("wb") as target:
        if compression == "gzip":
            with gzip.GzipFile(filename="", mode="wb", compresslevel=5, fileobj=target, mtime=0) as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
        else:
            subprocess.run(["zstd", "-q", "-6", "-T0", "-c"], stdin=source, stdout=target, check=True)
    tar.unlink()
    return add_blob(blobs, packed, f"{LAYER}+{compression}"), f"sha256:{diff_id}"


def add_blob(blobs: Path, path: Path, media_type: str) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    path.rename(blobs / digest)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def add_document(blobs: Path, value: object, media_type: str) -> dict[str, object]:
    path = blobs / "document"
    path.write_text(json.dumps(value, indent=2, sort_keys=True))
    return add_blob(blobs, path, media_type)


def write_documents(layout: Path, arch: str, run: tuple[tuple[str, ...], str], layers: list[tuple[dict[str, object], str]]) -> None:
    """Write configuration (`run`: Env and WorkingDir), manifest and index."""
    blobs = layout / "blobs" / "sha256"
    env, working_dir = run
    config = {
        "architecture": DEBIAN[arch],
        "os": "linux",
        "config": {"Env": env, "WorkingDir": working_dir, "Cmd": ["bash"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        "history": [{"created_by": "base packages"}, {"created_by": "toolchain"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add_document(blobs, config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor for descriptor, _ in layers],
    }
    entry = add_document(blobs, manifest, "application/vnd.oci.image.manifest.v1+json")
    write_index(layout, [{**entry, "platform": {"architecture": DEBIAN[arch], "os": "linux"}}])


def platforms(layout: Path) -> list[dict[str, object]]:
    """The descriptors of the manifests in a layout's index."""
    (inner,) = json.loads((layout / "index.json").read_text())["manifests"]
    found: list[dict[str, object]] = json.loads((layout / "blobs/sha256" / inner["digest"].partition(":")[2]).read_text())["manifests"]
    return found


def write_index(layout: Path, manifests: list[dict[str, object]]) -> None:
    """Write an index of these manifests, by the name `latest`, and the layout's own files."""
    blobs = layout / "blobs" / "sha256"
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}
    inner = add_document(blobs, index, "application/vnd.oci.image.index.v1+json")
    inner["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    top = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [inner]}
    (layout / "index.json").unlink(missing_ok=True)  # it may be a link into the cache
    (layout / "index.json").write_text(json.dumps(top, indent=2, sort_keys=True))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


if __name__ == "__main__":
    main()
