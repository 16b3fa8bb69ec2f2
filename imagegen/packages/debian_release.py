"""The InRelease file of a suite of Debian's, and whose signature it bears: gpgv is asked, by the
keyring that the image's own apt goes by, or else this host's. And until when it counts.

apt-secure(8); gpgv(1); GnuPG doc/DETAILS (status lines); Debian's repository format (Valid-Until).
"""

import datetime
import email.utils
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from mayfly.errors import RegistryError
from mayfly.imagegen.oci.reference import is_loopback
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.dpkg import KEYRINGS

GPGV_S = 60
_SNAPSHOT = re.compile(r"/\d{8}T\d{6}Z/")
"""In the address of an archive as it was at a time (snapshot.debian.org): such has expired."""
_LIES = "the archive is damaged or lies; do not use it"


def read_release(data: bytes, url: str, suite: str, keyring: bytes, progress: Progress) -> str:
    """What an InRelease file says, if one of these keys signed it. An archive on loopback is
    trusted without a signature; so is one that is asked over https where gpgv or a keyring is
    missing. Where it says until when it is valid, that time must not have passed, but in a snapshot
    of an archive.

    Raises:
        RegistryError: it is not signed by any of these keys, or is of another suite, or has
            expired, or cannot be trusted.
    """
    address = urllib.parse.urlsplit(url)
    text = data.decode("utf-8", "replace")
    if not is_loopback(address.hostname or ""):
        keyring = keyring or _of_this_host()
        lacks = "no gpgv here" if not shutil.which("gpgv") else "" if keyring else "no keyring of Debian's in the image or here"
        if not lacks:
            text = _signed(data, url, keyring)
        elif address.scheme != "https":
            raise RegistryError(f"{url}: its signature cannot be checked: {lacks}", hint="install gpgv, or ask the archive over https")
        else:
            progress.say(f"{url}: its signature is not checked: {lacks}")
    if not re.search(rf"^(Suite|Codename): {re.escape(suite)}$", text, re.MULTILINE):
        raise RegistryError(f"{url} is of another suite than {suite}", hint=_LIES)
    until = re.search(r"^Valid-Until: *(.*)$", text, re.MULTILINE)
    if until and not _SNAPSHOT.search(address.path) and _has_passed(until[1]):
        hint = "look at this host's clock, or ask an archive that is kept up to date; of a snapshot the address has its time"
        raise RegistryError(f"{url} has expired: it was valid until {until[1]}", hint=hint)
    return text


def _has_passed(time: str) -> bool:
    """Whether a time, written as in RFC 5322, is over; one that nobody can read is."""
    try:
        return email.utils.parsedate_to_datetime(time).astimezone(datetime.UTC) < datetime.datetime.now(datetime.UTC)
    except (ValueError, OverflowError):
        return True


def _of_this_host() -> bytes:
    """This host's keyring; empty if it has none."""
    return next((Path("/", name).read_bytes() for name in KEYRINGS if Path("/", name).is_file()), b"")


def _signed(data: bytes, url: str, keyring: bytes) -> str:
    """The text that is signed: what stands around it in the file does not count. As apt has it, one
    good signature is enough, and a bad one is too many.

    Raises:
        RegistryError: the signature is not good.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-gpgv.") as name:
        keys, file, text = (Path(name, part) for part in ("keyring.gpg", "InRelease", "text"))
        keys.write_bytes(keyring)
        file.write_bytes(data)
        command = ["gpgv", "--homedir", name, "--keyring", str(keys), "--status-fd", "1", "--output", str(text), str(file)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GPGV_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise RegistryError(f"{url}: gpgv did not check its signature in {GPGV_S} s", hint="try again") from error
        states = set(re.findall(rb"^\[GNUPG:\] (GOODSIG|BADSIG) ", done.stdout, re.MULTILINE))
        if states != {b"GOODSIG"} or not text.exists():
            said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
            raise RegistryError(f"{url} is not signed by a key of Debian's: {said}", hint=_LIES)
        return text.read_text("utf-8", "replace")
