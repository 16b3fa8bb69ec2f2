"""The InRelease file of a suite of Debian's, and whose signature it bears: gpgv is asked, by the
keyring that the image's own apt goes by, or else this host's.

apt-secure(8); gpgv(1); GnuPG doc/DETAILS (status lines); Debian's repository format.
"""

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
_LIES = "the archive is damaged or lies; do not use it"


def read_release(data: bytes, url: str, suite: str, keyring: bytes, progress: Progress) -> str:
    """What an InRelease file says, if one of these keys signed it. An archive on loopback is
    trusted without a signature; so is one that is asked over https where gpgv or a keyring is
    missing.

    Raises:
        RegistryError: it is not signed by any of these keys, or is of another suite, or cannot be
            trusted.
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
    return text


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
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GPGV_S, check=False)
        states = set(re.findall(rb"^\[GNUPG:\] (GOODSIG|BADSIG) ", done.stdout, re.MULTILINE))
        if states != {b"GOODSIG"} or not text.exists():
            said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
            raise RegistryError(f"{url} is not signed by a key of Debian's: {said}", hint=_LIES)
        return text.read_text("utf-8", "replace")
