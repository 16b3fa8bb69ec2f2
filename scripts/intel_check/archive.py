"""Debian's archive of SUITE, read by apt with lists of its own.

This machine's apt knows its own release alone; apt checks all that it fetches.
"""

from pathlib import Path

from scripts.debian.mirror import KEYRING, SUITE, MirrorError, mirror
from scripts.debian.root import HostFilesError, run


class Archive:
    """Downloads into `folder`, which must exist.

    Raises:
        HostFilesError: there is no mirror, or apt cannot read it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            source = mirror()
        except MirrorError as error:
            raise HostFilesError(str(error)) from error
        self._folder = folder
        state = folder / "apt"
        for name in ("lists/partial", "cache/archives/partial"):
            (state / name).mkdir(parents=True)
        (state / "status").touch()
        kinds = (f"{kind} [signed-by={KEYRING}] {source} {SUITE} main\n" for kind in ("deb", "deb-src"))
        (state / "sources.list").write_text("".join(kinds))
        settings = {
            "Dir::Etc::SourceList": state / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "APT::Sandbox::User": "root",
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        run("apt-get", *self._options, "-qq", "update")

    def source(self, package: str) -> Path:
        """The upstream tarball of a source package."""
        run("apt-get", *self._options, "-qq", "source", "--download-only", "--tar-only", package, cwd=self._folder)
        return next(self._folder.glob(f"{package}_*.orig.tar.*"))

    def unpack(self, package: str) -> Path:
        """The folder into which a binary package was unpacked; its scripts do not run."""
        run("apt-get", *self._options, "-qq", "download", package, cwd=self._folder)
        target = self._folder / package
        run("dpkg-deb", "-x", next(self._folder.glob(f"{package}_*.deb")), target)
        return target

    def dependency(self, package: str) -> str:
        """The first package that `package` depends on: of a metapackage, the real one."""
        lines = run("apt-cache", *self._options, "depends", package).splitlines()
        return next(line.split()[-1] for line in lines if line.strip().startswith("Depends:"))
