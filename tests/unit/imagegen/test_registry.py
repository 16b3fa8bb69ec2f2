"""Pulling, from a registry that misbehaves in this process and from Debian's real one."""

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.errors import HostError, LayerError, RegistryError
from mayfly.imagegen.oci.client import ATTEMPTS
from mayfly.imagegen.oci.documents import ResolvedImage, Source, resolve
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference, RegistryReference, parse_reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.progress import Silent
from mayfly.imagegen.rootfs.layers import merge
from mayfly.imagegen.rootfs.spools import Layer, Limits, Spools
from mayfly.images.manifest import load
from mayfly.vmm.loader import elf
from tests.kit.agent_process import build_agent
from tests.kit.imagegen_kit import LayoutMaker, member, read_cpio, tar
from tests.kit.registry_kit import FakeRegistry, Faults
from tests.kit.scale import FULL

ROOT = Path(__file__).parents[3]
REGISTRY = (sys.executable, "-m", "scripts.debian.local_registry")
CONTENTS = hashlib.shake_256(b"contents").digest(1_500_000)
LAYER = tar(member(b"a", CONTENTS))
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An index of two platforms: amd64 with a gzip and a zstd layer, arm64 with one of Docker's."""
    maker = LayoutMaker(tmp_path / "test")
    amd64 = maker.image([maker.layer(LAYER), maker.layer(tar(member(b"b", CONTENTS)), "zstd")])
    arm64 = maker.image([maker.layer(tar(member(b"c")), docker=True)], "arm64", docker=True)
    return maker.finish(maker.index([arm64, amd64]))


def _reference(address: str, rest: str = ":latest") -> RegistryReference:
    reference = parse_reference(f"{address}/test{rest}")
    assert isinstance(reference, RegistryReference)
    return reference


def _source(address: str, cache: Path, pauses: list[float] | None = None, rest: str = ":latest") -> RegistrySource:
    return RegistrySource(_reference(address, rest), cache, progress=Silent(), pause=(pauses if pauses is not None else []).append)


def _pull(source: Source) -> tuple[ResolvedImage, list[Path]]:
    image = resolve(source, "x86_64")
    return image, [source.blob(layer) for layer in image.layers]


def _check(image: ResolvedImage, paths: list[Path]) -> None:
    for layer, path in zip(image.layers, paths, strict=True):
        assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == layer.digest


def _left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob(".*"))


def test_a_pull_and_a_second_one_from_the_cache(layout: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with FakeRegistry(layout) as registry:
        image, paths = _pull(_source(registry.address, cache))
        _check(image, paths)
        assert len(paths) == 2
        asked = len(registry.requests)
        assert _pull(_source(registry.address, cache)) == (image, paths)
        assert [path for path, _ in registry.requests[asked:]] == ["/v2/test/manifests/latest"]
        registry.requests.clear()
        _pull(_source(registry.address, cache, rest=f"@{image.manifest_digest}"))
        assert registry.requests == []
    assert _left(cache) == []


def test_an_anonymous_token(layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout, Faults(token="secret")) as registry:
        _check(*_pull(_source(registry.address, tmp_path / "cache")))
        assert any(path.startswith("/token") for path, _ in registry.requests)


def _log_in(folder: Path, monkeypatch: pytest.MonkeyPatch, address: str, account: str, key: str = "auth") -> None:
    (folder / "config.json").write_text(json.dumps({"auths": {address: {key: account}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def test_a_token_for_an_account(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRegistry(layout, Faults(token="secret", account="bWU6cGFzcw==")) as registry:
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        with pytest.raises(RegistryError, match="refuses"):
            _pull(_source(registry.address, tmp_path / "cache"))
        _log_in(tmp_path, monkeypatch, registry.address, "bWU6cGFzcw==")
        _check(*_pull(_source(registry.address, tmp_path / "cache")))


def test_an_identity_token_is_exchanged(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRegistry(layout, Faults(token="secret", identity_token="of-mine")) as registry:
        _log_in(tmp_path, monkeypatch, registry.address, "of-mine", "identitytoken")
        _check(*_pull(_source(registry.address, tmp_path / "cache")))
        _log_in(tmp_path, monkeypatch, registry.address, "of-another", "identitytoken")
        with pytest.raises(RegistryError, match="refuses"):
            _pull(_source(registry.address, tmp_path / "other"))


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"no json", b'{"token": 3}', b"[" * 100_000])
def test_a_token_that_is_none_is_a_refusal(layout: Path, tmp_path: Path, answer: bytes) -> None:
    with (
        FakeRegistry(layout, Faults(token="secret", token_answer=answer)) as registry,
        pytest.raises(RegistryError, match="refuses"),
    ):
        _pull(_source(registry.address, tmp_path / "cache"))


def test_the_token_is_asked_for_again_when_that_fails_for_a_while(layout: Path, tmp_path: Path) -> None:
    pauses: list[float] = []
    with FakeRegistry(layout, Faults(token="secret", token_status=[503, 429])) as registry:
        _check(*_pull(_source(registry.address, tmp_path / "cache", pauses)))
    assert pauses == [0.25, 0.5]


def test_a_token_that_expires_is_renewed(layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout, Faults(token="secret", expires_after=2)) as registry:
        _check(*_pull(_source(registry.address, tmp_path / "cache")))
        assert len([path for path, _ in registry.requests if path.startswith("/token")]) == 2


def test_a_redirect_is_followed_without_the_token(layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout) as store, FakeRegistry(layout, Faults(token="secret", redirect=store.address)) as registry:
        _check(*_pull(_source(registry.address, tmp_path / "cache")))
        assert {path.split("/")[3] for path, _ in store.requests} == {"blobs"}
        assert set(store.authorizations) == {""}


def test_offline_all_comes_from_the_cache(layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout) as registry:
        reference = parse_reference(f"{registry.address}/test:latest")
        assert isinstance(reference, RegistryReference)
        offline = RegistrySource(reference, tmp_path / "cache", offline=True, progress=Silent())
        with pytest.raises(RegistryError, match="not all in the cache") as caught:
            resolve(offline, "x86_64")
        assert "--offline" in caught.value.hint
        assert registry.requests == []
        pulled = _pull(_source(registry.address, tmp_path / "cache"))
        registry.requests.clear()
        assert _pull(offline) == pulled
        pulled[1][0].unlink()
        with pytest.raises(RegistryError, match="not all in the cache"):
            _pull(offline)
        assert registry.requests == []


def test_a_broken_download_goes_on_where_it_ended(layout: Path, tmp_path: Path) -> None:
    pauses: list[float] = []
    with FakeRegistry(layout) as registry:
        source = _source(registry.address, tmp_path / "cache", pauses)
        image = resolve(source, "x86_64")
        registry.faults.cut_blobs_at = [700_000, 0, 300_000]
        _check(image, [source.blob(layer) for layer in image.layers])
        ranges = [asked for _, asked in registry.requests if asked]
    assert ranges == ["bytes=700000-", "bytes=700000-", "bytes=1000000-"]
    assert pauses == [0.25, 0.5, 1.0]


def test_a_download_goes_on_in_another_process(layout: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with FakeRegistry(layout) as registry:
        image = resolve(_source(registry.address, cache), "x86_64")
        registry.faults.cut_blobs_at = [600_000] + [0] * ATTEMPTS
        with pytest.raises(RegistryError, match=f"{ATTEMPTS} times"):
            _source(registry.address, cache).blob(image.layers[0])
        registry.faults.cut_blobs_at = []
        registry.requests.clear()
        _check(image, [_source(registry.address, cache).blob(layer) for layer in image.layers])
        assert registry.requests[0][1] == "bytes=600000-"
    assert _left(cache) == []


def test_a_registry_without_ranges_begins_again(layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout, Faults(no_range=True)) as registry:
        source = _source(registry.address, tmp_path / "cache")
        image = resolve(source, "x86_64")
        registry.faults.cut_blobs_at = [700_000]
        _check(image, [source.blob(layer) for layer in image.layers])


def test_a_wrong_left_over_is_found_and_fetched_again(layout: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with FakeRegistry(layout) as registry:
        source = _source(registry.address, cache)
        image = resolve(source, "x86_64")
        part = cache / "sha256" / f".{image.layers[0].digest.removeprefix('sha256:')}.part"
        part.write_bytes(bytes(1000))
        _check(image, [source.blob(layer) for layer in image.layers])


@pytest.mark.parametrize("change", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: bytes(len(data)), lambda data: data[:9]])
def test_a_kept_blob_that_changed_is_fetched_again_once(layout: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    cache = tmp_path / "cache"
    with FakeRegistry(layout) as registry:
        image, paths = _pull(_source(registry.address, cache))
        paths[0].write_bytes(change(paths[0].read_bytes()))
        with pytest.raises(RegistryError, match="not all in the cache"):
            RegistrySource(_reference(registry.address), cache, offline=True, progress=Silent()).blob(image.layers[0])
        registry.requests.clear()
        _check(*_pull(_source(registry.address, cache)))
        _check(*_pull(_source(registry.address, cache)))
        assert [path for path, _ in registry.requests if "blobs" in path] == [f"/v2/test/blobs/{image.layers[0].digest}"]
    assert _left(cache) == []


def test_digests_may_be_of_sha512(tmp_path: Path) -> None:
    """As go-digest, which skopeo and containerd use, takes them (descriptor.md, SHA-512)."""
    maker = LayoutMaker(tmp_path / "test", "sha512")
    made = maker.image([maker.layer(LAYER)])
    layout, cache = maker.finish(made), tmp_path / "cache"
    from_layout = _pull(LayoutSource(LayoutReference(path=layout)))[0]
    with FakeRegistry(layout) as registry:
        for rest in (":latest", f"@{made['digest']}"):
            image, paths = _pull(_source(registry.address, cache, rest=rest))
            assert image == from_layout
        registry.faults.garble = True
        paths[0].unlink()
        with pytest.raises(RegistryError, match="asked for sha512:"):
            _source(registry.address, cache).blob(image.layers[0])
        registry.faults.garble = False
        _, paths = _pull(_source(registry.address, cache))
    layer = Layer(path=paths[0], digest=image.layers[0].digest, diff_id=image.config.diff_ids[0])
    with Spools(tmp_path) as spools:
        node = merge([layer], spools, Limits()).find(b"a")
        assert node is not None
        assert spools.read(node.inode.content) == CONTENTS
        with pytest.raises(LayerError, match="its tar hashes to sha512:"):
            merge([dataclasses.replace(layer, diff_id=layer.digest)], spools, Limits())


def test_a_full_disk_leaves_nothing_and_a_second_try_works(layout: Path, tmp_path: Path) -> None:
    """A limit of the process on files stands for the disk's."""
    cache = tmp_path / "cache"
    with FakeRegistry(layout) as registry:
        source = _source(registry.address, cache)
        image = resolve(source, "x86_64")
        before = sorted(cache.rglob("*"))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
        try:
            with pytest.raises(HostError, match="File too large") as caught:
                source.blob(image.layers[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "imagegen prune" in caught.value.hint
        assert sorted(cache.rglob("*")) == before
        _check(image, [source.blob(layer) for layer in image.layers])


@pytest.mark.parametrize("fault", [Faults(garble=True), Faults(longer=True)])
def test_a_lying_registry_is_refused(layout: Path, tmp_path: Path, fault: Faults) -> None:
    cache = tmp_path / "cache"
    with FakeRegistry(layout) as registry:
        source = _source(registry.address, cache)
        image = resolve(source, "x86_64")
        registry.faults = fault
        with pytest.raises(RegistryError) as caught:
            source.blob(image.layers[0])
        assert "do not use" in caught.value.hint
    assert not (cache / "sha256" / image.layers[0].digest.removeprefix("sha256:")).exists()


def test_a_manifest_that_is_not_of_the_digest_asked_for(layout: Path, tmp_path: Path) -> None:
    wrong = "sha256:" + "0" * 64
    with FakeRegistry(layout) as registry:
        entry = next(layout.glob("blobs/sha256/*"))
        for path in layout.glob("blobs/sha256/*"):
            entry = path if path.read_bytes()[:1] == b"{" else entry
        shutil.copy(entry, layout / "blobs" / wrong.replace(":", "/"))
        document = entry.read_bytes()
        if b'"mediaType"' not in document[:4000]:
            pytest.fail("the layout has no document with a media type")
        with pytest.raises(RegistryError, match="answers with"):
            resolve(_source(registry.address, tmp_path / "cache", rest=f"@{wrong}"), "x86_64")


def test_passing_trouble_is_waited_out(layout: Path, tmp_path: Path) -> None:
    pauses: list[float] = []
    with FakeRegistry(layout, Faults(status=[503, 429, 500])) as registry:
        _check(*_pull(_source(registry.address, tmp_path / "cache", pauses)))
    assert pauses == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("asked", "pause"),
    [("7", 7.0), ("45", 45.0), ("0", 0.25), ("-5", 0.25), ("soon", 0.25), ("²", 0.25), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.25)],
)
def test_the_pause_is_as_long_as_the_registry_asks(layout: Path, tmp_path: Path, asked: str, pause: float) -> None:
    pauses: list[float] = []
    with FakeRegistry(layout, Faults(status=[429], status_headers={"Retry-After": asked})) as registry:
        _check(*_pull(_source(registry.address, tmp_path / "cache", pauses)))
    assert pauses == [pause]


def test_a_long_pause_is_told(layout: Path, tmp_path: Path) -> None:
    class Heard(Silent):
        def say(self, message: str) -> None:
            heard.append(message)

    heard: list[str] = []
    with FakeRegistry(layout, Faults(status=[429, 503], status_headers={"Retry-After": "45"})) as registry:
        source = RegistrySource(_reference(registry.address), tmp_path / "cache", progress=Heard(), pause=lambda _: None)
        _check(*_pull(source))
    assert heard == [
        f"127.0.0.1:{registry.address.partition(':')[2]} answers {status}; trying again in 45 s, as it asks" for status in (429, 503)
    ]


@pytest.mark.parametrize("asked", ["21600", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_registry_that_asks_for_long_is_told_at_once(layout: Path, tmp_path: Path, asked: str) -> None:
    pauses: list[float] = []
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "pull rate\\u001b[2J\\nlimit"}]}'
    with (
        FakeRegistry(layout, Faults(status=[429] * 9, status_headers={"Retry-After": asked}, status_body=body)) as registry,
        pytest.raises(RegistryError, match=r"429, and says: TOOMANYREQUESTS: pull rate \[2J limit; it asks to wait \d+ s") as caught,
    ):
        _pull(_source(registry.address, tmp_path / "cache", pauses))
    assert pauses == []
    assert "log in" in caught.value.hint


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"errors": []}', b'{"errors": [3]}', b'{"errors": [{"code": 3}]}', b"[" * 100_000, bytes(100_000)]
)
def test_a_refusal_that_says_nothing_of_use(layout: Path, tmp_path: Path, body: bytes) -> None:
    with FakeRegistry(layout, Faults(status=[403], status_body=body)) as registry, pytest.raises(RegistryError, match="refuses: there"):
        _pull(_source(registry.address, tmp_path / "cache"))


def test_what_a_registry_says_of_its_refusal_is_told(layout: Path, tmp_path: Path) -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "requested access to the resource is denied", "detail": 3}]}'
    with (
        FakeRegistry(layout, Faults(status=[403], status_body=body)) as registry,
        pytest.raises(RegistryError, match="refuses, and says: DENIED: requested access to the resource is denied: there is no account"),
    ):
        _pull(_source(registry.address, tmp_path / "cache"))


@pytest.mark.parametrize(("status", "text"), [(404, "no such image"), (403, "account"), (410, "410")])
def test_refusals_are_final(layout: Path, tmp_path: Path, status: int, text: str) -> None:
    pauses: list[float] = []
    with FakeRegistry(layout, Faults(status=[status] * 9)) as registry, pytest.raises(RegistryError, match=text):
        _pull(_source(registry.address, tmp_path / "cache", pauses))
    assert pauses == []


def test_a_layer_that_is_at_a_url_of_its_own_is_not_asked_for_there(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "test")
    descriptor, diff_id = maker.layer(LAYER)
    with FakeRegistry(tmp_path / "test") as registry, FakeRegistry(tmp_path / "test") as other:
        layout = maker.finish(maker.image([({**descriptor, "urls": [f"http://{other.address}/v2/test/blobs/x"]}, diff_id)]))
        (layout / "blobs" / descriptor["digest"].replace(":", "/")).unlink()
        with pytest.raises(RegistryError, match=f"lacks the blob {descriptor['digest']}") as caught:
            _pull(_source(registry.address, tmp_path / "cache"))
        assert "not fetched" in caught.value.hint
        assert other.requests == []


def test_no_registry_at_all(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses every connection
        pauses: list[float] = []
        with pytest.raises(RegistryError, match="cannot reach") as caught:
            _pull(_source(f"127.0.0.1:{taken.getsockname()[1]}", tmp_path, pauses))
    assert "oci:FOLDER" in caught.value.hint
    assert "oci:" in caught.value.hint
    assert len(pauses) == ATTEMPTS - 1
    assert max(pauses) <= 8


def test_plain_http_is_for_loopback_only(tmp_path: Path) -> None:
    def base(text: str, insecure: bool) -> str:
        reference = parse_reference(text)
        assert isinstance(reference, RegistryReference)
        return RegistrySource(reference, tmp_path, insecure=insecure, progress=Silent())._base.partition(":")[0]

    assert base("localhost:1/a", False) == "http"
    assert base("rust", False) == "https"
    assert base("10.0.0.1:5000/a", False) == "https"
    assert base("10.0.0.1:5000/a", True) == "http"


def test_two_pulls_at_once_fetch_a_blob_once(layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout) as registry:
        image = resolve(_source(registry.address, tmp_path / "cache"), "x86_64")
        registry.requests.clear()
        sources = [_source(registry.address, tmp_path / "cache") for _ in range(4)]
        threads = [threading.Thread(target=source.blob, args=(image.layers[0],)) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(registry.requests) == 1


# --- Debian's docker-registry ---

PULL = """
import sys
from pathlib import Path
from tests.unit.imagegen.test_registry import _check, _pull, _source
_check(*_pull(_source(sys.argv[1], Path(sys.argv[2]))))
print("pulled")
"""


class _Throttle:
    """Forwards connections to `address`; after `limit` bytes of answers in all it stalls, and tells
    so by `stalled`.
    """

    def __init__(self, address: str, limit: int) -> None:
        self.lead_to(address, limit)
        self._lock = threading.Lock()
        self.stalled = threading.Event()
        self.released = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def lead_to(self, address: str, limit: int) -> None:
        """Where the next connections go, and how much they may bring."""
        host, _, port = address.partition(":")
        self._target = (host, int(port))
        self.left = limit

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._connections += (near, far)
            for work in (self._up, self._down):
                self._threads.append(threading.Thread(target=work, args=(near, far)))
                self._threads[-1].start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        while data := _receive(near):
            far.sendall(data)
        _shut(far)

    def _down(self, near: socket.socket, far: socket.socket) -> None:
        while data := _receive(far):
            with self._lock:
                self.left -= len(data)
                over = self.left < 0
            if over:
                self.stalled.set()
                self.released.wait(60)
                break
            near.sendall(data)
        _shut(near)

    def close(self) -> None:
        self.released.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            _shut(connection)
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(16_384)
    except OSError:
        return b""


@pytest.fixture
def real_registry(layout: Path, tmp_path: Path) -> object:
    """The address of a docker-registry that serves the layout."""
    yield _start(layout, tmp_path)
    _stop(tmp_path)


def _start(layout: Path, tmp_path: Path) -> str:
    started = subprocess.run(
        [*REGISTRY, "start", layout], cwd=ROOT, env=_state(tmp_path), check=True, capture_output=True, text=True, timeout=60
    )
    return started.stdout.strip()


def _stop(tmp_path: Path) -> None:
    subprocess.run([*REGISTRY, "stop"], cwd=ROOT, env=_state(tmp_path), check=True, timeout=60)


def _state(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "state")}


def test_a_pull_from_the_real_registry(real_registry: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    image, paths = _pull(_source(real_registry, cache))
    _check(image, paths)
    assert image.config.platform == "linux/amd64"
    arm = resolve(_source(real_registry, cache), "aarch64")
    assert arm.config.platform == "linux/arm64"
    assert arm.layers[0].media_type.startswith("application/vnd.docker.")
    with pytest.raises(RegistryError, match="no such image"):
        resolve(_source(real_registry, cache, rest=":nope"), "x86_64")


def test_a_pull_that_is_killed_goes_on_in_the_next(real_registry: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    throttle = _Throttle(real_registry, 1_200_000)
    try:
        first = subprocess.Popen([sys.executable, "-c", PULL, throttle.address, str(cache)], cwd=ROOT, stdout=subprocess.PIPE)
        assert throttle.stalled.wait(60)
        parts: list[Path] = []
        until = time.monotonic() + 60
        while not (parts and parts[0].stat().st_size):  # what was sent may not have been written yet
            assert time.monotonic() < until
            parts = list((cache / "sha256").glob(".*.part"))
        first.send_signal(signal.SIGKILL)
        out, _ = first.communicate()
        assert out == b""
    finally:
        throttle.close()
    assert len(parts) == 1
    had = parts[0].stat().st_size
    assert 0 < had < len(CONTENTS)
    second = _Throttle(real_registry, 10 << 20)
    try:
        _check(*_pull(_source(second.address, cache)))
        taken = (10 << 20) - second.left
    finally:
        second.close()
    assert taken < 2 * len(CONTENTS) - had + 20_000  # the blobs' bytes that were there were not fetched again
    assert _left(cache) == []


def test_a_registry_that_is_killed_and_comes_back(layout: Path, real_registry: str, tmp_path: Path) -> None:
    """The same pull goes on with what it has."""
    throttle = _Throttle(real_registry, 1_200_000)
    cache = tmp_path / "cache"
    sizes: list[int] = []

    def pause(_: float) -> None:
        """The registry is made again, by when the pull has noticed."""
        if not sizes:
            sizes.extend(path.stat().st_size for path in (cache / "sha256").glob(".*.part"))
            throttle.lead_to(_start(layout, tmp_path), 10 << 20)

    reference = parse_reference(f"{throttle.address}/test:latest")
    assert isinstance(reference, RegistryReference)
    source = RegistrySource(reference, cache, progress=Silent(), pause=pause)
    pulled: list[tuple[ResolvedImage, list[Path]]] = []
    puller = threading.Thread(target=lambda: pulled.append(_pull(source)))
    puller.start()
    try:
        assert throttle.stalled.wait(60)
        _stop(tmp_path)
        throttle.released.set()
        puller.join()
        _check(*pulled[0])
        taken = (10 << 20) - throttle.left
    finally:
        throttle.close()
    assert [0 < size < len(CONTENTS) for size in sizes] == [True]
    assert taken < 2 * len(CONTENTS) - sizes[0] + 20_000
    assert _left(cache) == []


def test_ctrl_c_ends_a_build_at_once_and_the_next_goes_on(real_registry: str, tmp_path: Path) -> None:
    build_agent()
    throttle = _Throttle(real_registry, 1_200_000)
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "mayfly.cli.main", "image", "build", "rust", "--image", f"{throttle.address}/test:latest"]
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        assert throttle.stalled.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        throttle.close()
    assert (process.returncode, said.splitlines()[-1]) == (130, "mayfly: interrupted")
    left = [path for path in (*(tmp_path / "data").rglob("*"), *(tmp_path / "cache").rglob("*")) if path.is_file()]
    assert [path for path in left if path.name not in (".lock", ".x86_64.lock") and path.parents[1].name != "blobs"] == []
    _check(*_pull(_source(real_registry, tmp_path / "cache" / "mayfly" / "blobs")))


if FULL:  # two toolchains of Debian's packages, some minutes once

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_each_platform_of_a_real_index_becomes_an_image(tmp_path: Path) -> None:
        layout, data = tmp_path / "rust", tmp_path / "data"
        platforms = [word for arch in ELF_MACHINES for word in ("--arch", arch)]
        reference = [sys.executable, "-m", "scripts.debian.reference_image", "rust", str(layout), *platforms]
        subprocess.run(reference, cwd=ROOT, check=True, capture_output=True)
        build = (
            'for arch; do "$PYTHON" -m mayfly.cli.main image build rust --arch $arch --compress none --image "$MAYFLY_REGISTRY/rust"; done'
        )
        environment = {**os.environ, "XDG_DATA_HOME": str(data), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        run = [sys.executable, "-m", "scripts.debian.local_registry", "run", str(layout), "--", "sh", "-ec", build, "sh", *ELF_MACHINES]
        subprocess.run(run, cwd=ROOT, env=environment, check=True, capture_output=True)
        for arch, machine in ELF_MACHINES.items():
            folder = data / "mayfly/images/rust" / arch
            assert load(folder).arch == arch
            programs = {entry.name: entry.data[: elf.HEADER.size] for entry in read_cpio((folder / "initramfs").read_bytes())}
            assert [elf.HEADER.unpack(programs[name])[2] for name in (b"init", b"usr/bin/rustc")] == [machine, machine]
