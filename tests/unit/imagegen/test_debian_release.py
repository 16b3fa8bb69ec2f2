"""Which InRelease files count, with keys made here and gpgv itself."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import RegistryError
from mayfly.imagegen.packages.debian_release import read_release
from mayfly.imagegen.progress import Silent
from mayfly.imagegen.rootfs.dpkg import KEYRINGS

pytestmark = pytest.mark.skipif(not shutil.which("gpg") or not shutil.which("gpgv"), reason="no gpg or gpgv on this host")
URL = "https://deb.example/debian/dists/trixie/InRelease"
TEXT = "Suite: stable\nCodename: trixie\nSHA256:\n abc 1 main/binary-amd64/Packages.xz\n"


class Keys:
    """GnuPG's home, with a key of one user."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        self._home = home
        self.gpg("--quick-generate-key", "archive@example", "ed25519", "sign", "never")

    def gpg(self, *words: str, text: str = "") -> bytes:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *words]
        return subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout

    def signed(self, text: str) -> bytes:
        return self.gpg("--clearsign", text=text)

    def keyring(self) -> bytes:
        return self.gpg("--export")

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self._home), "--kill", "all"], check=True)


class Words(Silent):
    """What was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Keys]]:
    folder = tmp_path_factory.mktemp("gnupg")
    made = [Keys(folder / name) for name in "ab"]
    yield made
    for one in made:
        one.close()


def test_what_a_known_key_signed_is_read(keys: list[Keys]) -> None:
    assert read_release(keys[0].signed(TEXT), URL, "trixie", keys[0].keyring(), Silent()).splitlines() == TEXT.splitlines()


def test_one_good_signature_of_two_is_enough(keys: list[Keys], tmp_path: Path) -> None:
    """As Debian's are of several keys, which keyrings learn one by one."""
    both = Keys.__new__(Keys)
    both._home = tmp_path / "both"
    both._home.mkdir(mode=0o700)
    for one in keys:
        both.gpg("--import", text=one.gpg("--armor", "--export-secret-keys").decode())
    users = [line.split(":")[9] for line in both.gpg("--with-colons", "--list-secret-keys").decode().splitlines() if line[:3] == "fpr"]
    signed = both.gpg(*(word for user in users for word in ("--local-user", user)), "--clearsign", text=TEXT)
    both.close()
    for one in keys:
        assert "SHA256:" in read_release(signed, URL, "trixie", one.keyring(), Silent())


def test_what_stands_around_the_signed_text_does_not_count(keys: list[Keys]) -> None:
    data = b"Codename: trixie\n evil\n" + keys[0].signed(TEXT.replace("trixie", "bookworm").replace("stable", "old")) + b"\nSuite: trixie\n"
    with pytest.raises(RegistryError, match="is of another suite than trixie"):
        read_release(data, URL, "trixie", keys[0].keyring(), Silent())


@pytest.mark.parametrize("url", [URL, URL.replace("https", "http")])
def test_what_nobody_known_signed_is_refused(keys: list[Keys], url: str) -> None:
    signed = keys[0].signed(TEXT)
    for data in (TEXT.encode(), signed.replace(b" abc ", b" abd "), keys[1].signed(TEXT), b""):
        with pytest.raises(RegistryError, match="is not signed by a key of Debian's"):
            read_release(data, url, "trixie", keys[0].keyring(), Silent())


def test_where_nothing_can_be_checked_https_is_trusted_and_http_is_not(
    keys: list[Keys], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keyring = keys[0].keyring()
    monkeypatch.setattr("mayfly.imagegen.packages.debian_release.KEYRINGS", (str(tmp_path / "none"),))
    for known, lacks in ((b"", "no keyring of Debian's in the image or here"), (keyring, "no gpgv here")):
        words = Words()
        assert read_release(TEXT.encode(), URL, "trixie", known, words) == TEXT
        assert words.said == [f"{URL}: its signature is not checked: {lacks}"]
        with pytest.raises(RegistryError, match=f"its signature cannot be checked: {lacks}"):
            read_release(TEXT.encode(), URL.replace("https", "http"), "trixie", known, Silent())
        monkeypatch.setitem(os.environ, "PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("until", "counts"), [("5 Dec 2076 02:53:00 UTC", True), ("Sat, 05 Dec 2015 02:53:00 UTC", False), ("soon", False)]
)
def test_what_has_expired_is_refused_but_of_a_snapshot(keys: list[Keys], until: str, counts: bool) -> None:
    signed = keys[0].signed(f"{TEXT}Valid-Until: {until}\n")
    snapshot = URL.replace("/debian/", "/archive/debian/20151205T025300Z/")
    assert "Valid-Until" in read_release(signed, snapshot, "trixie", keys[0].keyring(), Silent())
    if counts:
        assert "Valid-Until" in read_release(signed, URL, "trixie", keys[0].keyring(), Silent())
        return
    with pytest.raises(RegistryError, match=f"has expired: it was valid until {until}") as caught:
        read_release(signed, URL, "trixie", keys[0].keyring(), Silent())
    assert "clock" in caught.value.hint


def test_a_gpgv_that_does_not_answer_is_an_error_of_the_archive(keys: list[Keys], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keyring, signed = keys[0].keyring(), keys[0].signed(TEXT)
    (tmp_path / "gpgv").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "gpgv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("mayfly.imagegen.packages.debian_release.GPGV_S", 0.05)
    with pytest.raises(RegistryError, match="gpgv did not check its signature"):
        read_release(signed, URL, "trixie", keyring, Silent())


def test_an_archive_on_loopback_needs_no_signature() -> None:
    assert read_release(TEXT.encode(), "http://127.0.0.1:80/InRelease", "trixie", b"", Silent()) == TEXT


def test_debians_own_is_signed_by_debians_keyring() -> None:
    lists = sorted(Path("/var/lib/apt/lists").glob("*_debian_dists_*_InRelease"))
    if not lists or not Path("/", KEYRINGS[1]).exists():
        pytest.skip("apt has no list of Debian's here")
    suite = lists[0].name.split("_dists_")[1].removesuffix("_InRelease")
    assert "main/binary-amd64/Packages.xz" in read_release(lists[0].read_bytes(), URL, suite, b"", Silent())
