"""Signed images: keys and signatures of minisign itself, docker-registry on loopback, and what is
changed on the way.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import mayfly.imagegen.build
from mayfly.cli.image import cli
from mayfly.errors import ConfigError, RegistryError
from mayfly.imagegen.build import build
from mayfly.imagegen.oci import artifact
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference
from mayfly.imagegen.oci.signature import FILE, Signer, read_signer, verify
from mayfly.imagegen.options import Options
from mayfly.imagegen.progress import Silent
from mayfly.images.manifest import load
from mayfly.paths import config_file, image_dir
from scripts.debian.local_registry import launch
from tests.kit.imagegen_kit import LayoutMaker, member, tar, toy_language

pytestmark = pytest.mark.skipif(not shutil.which("minisign"), reason="minisign is missing: scripts/setup")


@pytest.fixture(scope="module")
def keys() -> Iterator[Callable[[str], tuple[Path, str]]]:
    """The file of a secret key, and the public one, by name."""
    with tempfile.TemporaryDirectory() as folder:

        def key(name: str) -> tuple[Path, str]:
            secret, public = Path(folder) / name, Path(folder) / f"{name}.pub"
            if not secret.exists():
                subprocess.run(["minisign", "-G", "-W", "-s", secret, "-p", public], check=True, stdout=subprocess.DEVNULL)
            return secret, public.read_text().splitlines()[1]

        yield key


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "mayfly-agent.x86_64").write_bytes(b"agent")
    monkeypatch.setattr(mayfly.imagegen.build, "AGENTS", tmp_path / "agents")
    maker = LayoutMaker(tmp_path / "layout")
    reference = LayoutReference(path=maker.finish(maker.image([maker.layer(tar(member(b"etc/toy-version", b"3.14")))])))
    return build(Options(language=toy_language(), reference=reference, arch="x86_64", compression="none"), Silent()).folder


def _trust(*keys: str) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(json.dumps({"image_keys": keys}))


def test_minisign_takes_our_signatures_and_we_take_its(keys: Callable[[str], tuple[Path, str]], tmp_path: Path) -> None:
    secret, public = keys("mine")
    data = tmp_path / "data"
    data.write_bytes(b"what is signed")
    ours = read_signer(secret).sign(b"what is signed", "toy 3.14")
    (tmp_path / "data.minisig").write_bytes(ours)
    said = subprocess.run(["minisign", "-V", "-P", public, "-m", data], check=True, capture_output=True, text=True)
    assert "toy 3.14" in said.stdout
    subprocess.run(["minisign", "-S", "-s", secret, "-t", "by hand", "-m", data], check=True, stdout=subprocess.DEVNULL)
    assert verify(b"what is signed", (tmp_path / "data.minisig").read_bytes(), [keys("other")[1], public]) == "by hand"


def test_what_is_not_signed_so_is_refused(keys: Callable[[str], tuple[Path, str]]) -> None:
    secret, public = keys("mine")
    signer = read_signer(secret)
    good = signer.sign(b"data", "comment")
    lines = good.decode().splitlines()
    stranger = Signer(signer.key_id, read_signer(keys("other")[0]).key)
    for signature, data, message in (
        (good, b"Data", "is not of this artifact"),
        (stranger.sign(b"data", "comment"), b"data", "is not of this artifact"),
        ("\n".join([*lines[:2], "trusted comment: another", lines[3]]).encode(), b"data", "is not of this artifact"),
        (read_signer(keys("other")[0]).sign(b"data", "x"), b"data", r"with the key [0-9A-F]{16}, which is not in image_keys"),
        (b"", b"data", "is not one of minisign's"),
        (b"\xff\n\n\n\n", b"data", "is not one of minisign's"),
        (good[:-9], b"data", "is not"),
    ):
        with pytest.raises(RegistryError, match=message):
            verify(data, signature, [public])
    with pytest.raises(ConfigError, match="'RWnonsense' is not a public key"):
        verify(b"data", good, ["RWnonsense"])


def test_secret_keys_that_cannot_be_used(tmp_path: Path, keys: Callable[[str], tuple[Path, str]]) -> None:
    text = keys("mine")[0].read_text()
    damaged = text[:150] + ("A" if text[150] != "A" else "B") + text[151:]
    locked = text.replace("RWQAAEIy", "RWRTY0Iy")
    for content, message in (("", "is not a secret key"), (locked, "has a password"), (damaged, "is damaged|is not a secret")):
        (tmp_path / "key").write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_signer(tmp_path / "key")
    with pytest.raises(ConfigError, match="is not a secret key"):
        read_signer(tmp_path / "none")


def test_through_a_registry(image: Path, keys: Callable[[str], tuple[Path, str]], tmp_path: Path) -> None:
    """Unsigned images are for those who trust no key."""
    secret, public = keys("mine")
    run = CliRunner().invoke
    (tmp_path / "registry").mkdir()
    process, address = launch(tmp_path / "registry")
    try:
        signed = json.loads(
            run(cli, ["push", "toy", f"{address}/signed:1", "--sign-with", str(secret), "--json"], catch_exceptions=False).stdout
        )
        run(cli, ["push", "toy", f"{address}/unsigned:1"], catch_exceptions=False)
        _trust(keys("other")[1], public)
        for reference in (signed["reference"], f"{address}/signed:1"):
            pulled = run(cli, ["pull", reference, "--as", "toy@3.14"], catch_exceptions=False)
            assert "signed: toy 3.14 for x86_64, sha256:" in pulled.output
        assert load(image_dir("toy@3.14", "x86_64")) == load(image)
        with pytest.raises(RegistryError, match="no signature of") as caught:
            run(cli, ["pull", f"{address}/unsigned:1"], catch_exceptions=False)
        assert "--sign-with" in caught.value.hint
        _trust(keys("other")[1])
        with pytest.raises(RegistryError, match="which is not in image_keys"):
            run(cli, ["pull", f"{address}/signed:1"], catch_exceptions=False)
        _trust()
        assert run(cli, ["pull", f"{address}/unsigned:1"], catch_exceptions=False).exit_code == 0
    finally:
        process.kill()
        process.wait()


def test_in_a_folder(image: Path, keys: Callable[[str], tuple[Path, str]], tmp_path: Path) -> None:
    secret, public = keys("mine")
    layout = tmp_path / "usb"
    artifact.export(image, layout, read_signer(secret))
    source = LayoutSource(LayoutReference(path=layout))
    assert artifact.pull(source, "", Silent(), [public])[0] == load(image)
    (layout / FILE).unlink()
    with pytest.raises(RegistryError, match="has no signature"):
        artifact.pull(source, "", Silent(), [public])
