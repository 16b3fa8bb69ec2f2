"""Build an image of Rust or Go with third-party packages on a host that reaches no registry of
them: with Debian's packaged crates or modules, which a registry on loopback serves meanwhile.

Usage: python -m scripts.debian.package_images rust|go FOLDER [OPTION OF mayfly image build]…
"""

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.debian import root as debianroot
from tests.kit.crates_kit import add_debian_crates
from tests.kit.modules_kit import add_debian_module
from tests.kit.package_kit import PackageServer

ROOT = Path(__file__).parents[2]
EXP = "v0.0.0-20231006140011-7918f672742d"
"""The version in which golang.org/x/exp is served."""


def _serve_modules(server: PackageServer, source: Path) -> None:
    add_debian_module(server, source, "golang.org/x/exp", EXP)
    add_debian_module(server, source, "github.com/google/uuid", "v1.6.0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packaged:
    """Packages of Debian's with the sources in `part`, how they are served, what is asked for of
    them, and what Debian's reference image has besides.
    """

    debian: tuple[str, ...]
    part: str
    serve: Callable[[PackageServer, Path], None]
    asked: tuple[str, ...]
    more: tuple[str, ...] = ()


PACKAGED = {
    "rust": Packaged(
        debian=("librust-serde-dev", "librust-serde-derive-dev", "librust-serde-json-dev", "librust-rand-dev"),
        part="usr/share/cargo/registry",
        serve=add_debian_crates,
        asked=("--package", "serde@1", "--features", "derive", "--package", "serde_json", "--package", "rand@0.8"),
        more=("cargo",),
    ),
    "go": Packaged(
        debian=("golang-golang-x-exp-dev", "golang-github-google-uuid-dev"),
        part="usr/share/gocode/src",
        serve=_serve_modules,
        asked=("--package", "golang.org/x/exp", "--package", "github.com/google/uuid@v1"),
    ),
}


def build(language: str, folder: Path, options: Sequence[str]) -> None:
    """Build the image into `folder`; `options` are those of `mayfly image build`.

    Raises:
        subprocess.CalledProcessError: it could not be built, and said why.
        HostFilesError: Debian's packages cannot be had.
    """
    packaged = PACKAGED[language]
    with tempfile.TemporaryDirectory(prefix="mayfly-packaged.") as temporary, PackageServer() as server:
        debianroot.unpack(Path(temporary) / "debian", packaged.debian, parts=(f"./{packaged.part}",))
        packaged.serve(server, Path(temporary) / "debian" / packaged.part)
        layout = Path(temporary) / "image"
        words = [word for name in packaged.more for word in ("--with", name)]
        subprocess.run([sys.executable, "-P", "-m", "scripts.debian.reference_image", language, str(layout), *words], cwd=ROOT, check=True)
        command = [sys.executable, "-P", "-m", "mayfly.cli.main", "image", "build", language, "--image", f"oci:{layout}"]
        where = ["--output", str(folder.absolute()), "--packages-from", server.address]
        subprocess.run([*command, *where, *packaged.asked, *options], cwd=ROOT, check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [language, folder, *options] if language in PACKAGED:
            try:
                build(language, Path(folder), ["--prepare-with", str(ROOT / "scripts/with-kvm"), *options])
            except subprocess.CalledProcessError as error:
                sys.exit(error.returncode)
            except debianroot.HostFilesError as error:
                sys.exit(f"package-images: {error}")
        case _:
            sys.exit((__doc__ or "").strip())
