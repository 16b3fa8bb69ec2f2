"""A base snapshot goes to another host as an artifact in docker-registry, signed; what was changed
on the way is refused.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mayfly.errors import MayflyError, RegistryError, SnapshotError
from mayfly.host import artifacts
from mayfly.host.plan import want_machine
from mayfly.imagegen.digests import digest_of
from mayfly.imagegen.oci.documents import MANIFEST_TYPE
from mayfly.imagegen.oci.reference import RegistryReference, parse_reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.oci.signature import read_signer
from mayfly.imagegen.progress import Silent
from mayfly.paths import cache_dir
from mayfly.runs.service import Service
from mayfly.snapshots import store
from mayfly.snapshots.store import MANIFEST, Snapshot
from mayfly.vmm.snapshot import FILES, MEMORY, STATE
from scripts.debian.local_registry import serving
from tests.kit.api_fakes import factory, install_toys, small_config
from tests.kit.named_snapshots import make_snapshot

pytestmark = [
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="docker-registry is missing: scripts/setup"),
    pytest.mark.skipif(not shutil.which("minisign"), reason="minisign is missing: scripts/setup"),
]


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Snapshot:
    """The base of the language `toy`, on a host of its own."""
    install_toys(monkeypatch, tmp_path)
    (tmp_path / "vmlinux").write_bytes(b"kernel")

    async def make() -> Snapshot:
        async with Service(small_config(tmp_path, cold=False), factory("")) as service:
            return await service.supply.ensure_base(want_machine(service.images.find("toy"), service.config))

    return asyncio.run(make())


def _source(text: str) -> RegistrySource:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    return RegistrySource(reference, cache_dir() / "blobs", progress=Silent(), pause=lambda _: None)


def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "there" / name))


def test_pushed_here_and_pulled_by_digest_there(base: Snapshot, registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret, public = tmp_path / "key", tmp_path / "key.pub"
    subprocess.run(["minisign", "-G", "-W", "-s", secret, "-p", public], check=True, stdout=subprocess.DEVNULL)
    keys = (public.read_text().splitlines()[1],)
    digest = artifacts.push(base.manifest.name, _source(f"{registry}/bases/toy:1"), read_signer(secret))
    assert artifacts.push(base.manifest.name, _source(f"{registry}/bases/toy:2")) == digest
    unsigned = artifacts.push(base.manifest.name, _source(f"{registry}/unsigned/toy:1"))
    _elsewhere(monkeypatch, tmp_path)
    with pytest.raises(RegistryError, match="no signature"):
        artifacts.pull(_source(f"{registry}/unsigned/toy@{unsigned}"), Silent(), keys)
    assert not list(store.installed())
    with store.claimed(base.manifest.name), pytest.raises(SnapshotError, match="is being made or removed now"):
        artifacts.pull(_source(f"{registry}/bases/toy@{digest}"), Silent(), keys)
    assert artifacts.pull(_source(f"{registry}/bases/toy@{digest}"), Silent(), keys) == base.manifest
    found = store.find(base.manifest.name)
    assert found.folder != base.folder
    for name in {MANIFEST, *FILES} - {MEMORY}:  # the fake machine's has no holes behind its pages
        assert (found.folder / name).read_bytes() == (base.folder / name).read_bytes()
    assert store.digests(found.folder) == base.manifest.files
    memory = (found.folder / MEMORY).stat()
    assert (memory.st_mode & 0o777, memory.st_size) == (0o600, base.manifest.machine.memory)
    assert memory.st_blocks * 512 <= base.manifest.memory_bytes


def test_a_diff_is_pushed_as_one(base: Snapshot, registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def make() -> Snapshot:
        async with Service(small_config(tmp_path, cold=False), factory("")) as service:
            return await make_snapshot(service, "ours")

    diff = asyncio.run(make())
    assert diff.manifest.parent == "toy"
    digest = artifacts.push("ours", _source(f"{registry}/diffs/ours:1"))
    _elsewhere(monkeypatch, tmp_path)
    source = _source(f"{registry}/diffs/ours@{digest}")
    told = artifacts.inspect(source)
    assert told is not None
    pulled = artifacts.pull(source, Silent())
    assert pulled.to_json().encode() == told
    assert (pulled.name, pulled.parent, pulled.files[STATE]) == ("ours", "", diff.manifest.files[STATE])
    assert store.find("ours").chain == (store.find("ours").folder,)


def test_what_others_need_is_not_replaced(base: Snapshot, registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By what is pulled: neither a parent nor a snapshot of another language."""

    async def make() -> None:
        async with Service(small_config(tmp_path, cold=False), factory("")) as service:
            await make_snapshot(service, "ours")

    asyncio.run(make())
    artifacts.push("toy", _source(f"{registry}/kept/toy:1"))
    assert artifacts.pull(_source(f"{registry}/kept/toy:1"), Silent()) == base.manifest, "it is the same"
    assert store.find("ours").parent == store.find("toy")
    read = artifacts._manifest
    with monkeypatch.context() as changed, pytest.raises(SnapshotError, match="toy is here the parent of ours"):
        changed.setattr(artifacts, "_manifest", lambda data: msgspec.structs.replace(read(data), created="another time"))
        artifacts.pull(_source(f"{registry}/kept/toy:1"), Silent())
    store.remove("ours")
    other = msgspec.structs.replace(base.manifest, language="py")
    (base.folder / MANIFEST).write_text(other.to_json())
    with pytest.raises(SnapshotError, match="toy is here a snapshot of py"):
        artifacts.pull(_source(f"{registry}/kept/toy:1"), Silent())
    assert store.find("toy").manifest == other


def test_an_artifact_without_digests_of_its_files_is_refused(base: Snapshot, registry: str) -> None:
    artifacts.push("toy", _source(f"{registry}/nodigests/toy:1"))
    target = _source(f"{registry}/nodigests/toy:1")
    document, config = json.loads(target.root()[1]), base.folder / MANIFEST
    config.write_text(msgspec.structs.replace(base.manifest, files={}).to_json())
    document["config"] |= {"digest": digest_of(config.read_bytes()), "size": config.stat().st_size}
    target.push(config, document["config"]["digest"])
    target.push_manifest(json.dumps(document).encode(), MANIFEST_TYPE)
    with pytest.raises(RegistryError, match="has not the digests of its files"):
        artifacts.inspect(_source(f"{registry}/nodigests/toy:1"))


def test_what_no_run_starts_from_is_not_pushed(base: Snapshot, registry: str) -> None:
    (base.folder / MANIFEST).write_text(msgspec.structs.replace(base.manifest, run="a" * 32).to_json())
    with pytest.raises(SnapshotError, match="in the midst of a run"):
        artifacts.push(base.manifest.name, _source(f"{registry}/midst/toy:1"))


def test_what_could_not_be_pulled_is_not_pushed(base: Snapshot, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_DOCUMENT", 100)
    with pytest.raises(SnapshotError, match="bytes; 100 can be pushed"):
        artifacts.push(base.manifest.name, _source(f"{registry}/large/toy:1"))


def test_what_was_altered_is_neither_pushed_nor_pulled(
    base: Snapshot, registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifacts.push(base.manifest.name, _source(f"{registry}/altered/toy:1"))
    manifest = msgspec.structs.replace(base.manifest, files={**base.manifest.files, MEMORY: digest_of(b"other pages")})
    (base.folder / MANIFEST).write_text(manifest.to_json())
    with pytest.raises(SnapshotError, match="was altered"):
        artifacts.push(base.manifest.name, _source(f"{registry}/altered/toy:2"))
    # An artifact whose configuration is of other files: its digests are right.
    target = _source(f"{registry}/altered/toy:1")
    document = json.loads(target.root()[1])
    path = base.folder / MANIFEST
    document["config"] |= {"digest": digest_of(path.read_bytes()), "size": path.stat().st_size}
    target.push(path, document["config"]["digest"])
    target.push_manifest(json.dumps(document).encode(), MANIFEST_TYPE)
    _elsewhere(monkeypatch, tmp_path)
    with pytest.raises(MayflyError, match="are not those of its configuration"):
        artifacts.pull(_source(f"{registry}/altered/toy:1"), Silent())
    assert not list(store.installed())
