"""Documents of a registry: platforms, digests, and what a liar could send."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ImageError, RegistryError
from mayfly.imagegen.oci.documents import Descriptor, ResolvedImage, parse_config, resolve
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference
from tests.kit.imagegen_kit import OCI_MANIFEST, LayoutMaker, digest, member, tar

LAYER = tar(member(b"a", b"x"))


def _resolve(folder: Path, arch: str = "x86_64", tag: str | None = None) -> ResolvedImage:
    return resolve(LayoutSource(LayoutReference(path=folder, tag=tag)), arch)


@pytest.mark.parametrize("docker", [False, True])
def test_the_platform_is_chosen_from_an_index(tmp_path: Path, docker: bool) -> None:
    maker = LayoutMaker(tmp_path)
    images = {}
    for arch in ("arm64", "amd64", "s390x"):
        layer = maker.layer(LAYER + arch.encode() * 512, docker=docker)
        images[arch] = maker.image([layer], arch, docker, env=[f"ARCH={arch}", "A=b=c", "broken"])
    attestation = {**images["s390x"], "platform": {"os": "unknown", "architecture": "unknown"}}
    maker.finish(maker.index([attestation, *images.values()], docker))
    for arch, name in (("x86_64", "amd64"), ("aarch64", "arm64")):
        image = _resolve(tmp_path, arch)
        assert image.manifest_digest == images[name]["digest"]
        assert image.config.env == {"ARCH": name, "A": "b=c"}
        assert len(image.layers) == 1


def test_a_missing_platform_is_named_with_those_there(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    maker.finish(maker.index([maker.image([maker.layer(LAYER)], arch) for arch in ("arm64", "s390x")]))
    with pytest.raises(ImageError, match="linux/amd64; its index has linux/arm64, linux/s390x"):
        _resolve(tmp_path)


def test_an_image_for_another_machine_is_refused(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    image = maker.image([maker.layer(LAYER)], "arm64")
    del image["platform"]
    maker.finish(image)
    with pytest.raises(ImageError, match="is for linux/arm64"):
        _resolve(tmp_path)
    assert _resolve(tmp_path, "aarch64").config.platform == "linux/arm64"


def test_tags_of_a_layout(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    maker.finish(maker.image([maker.layer(LAYER)]), tag="1.0")
    assert _resolve(tmp_path, tag="1.0") == _resolve(tmp_path)
    with pytest.raises(ImageError, match=r"'2\.0'") as caught:
        _resolve(tmp_path, tag="2.0")
    assert "1.0" in caught.value.hint


def test_full_names_of_a_layout(tmp_path: Path) -> None:
    """As `podman save --format oci-dir` writes them."""
    maker = LayoutMaker(tmp_path)
    images = {f"docker.io/library/rust:{v}": maker.image([maker.layer(tar(member(v.encode())))]) for v in ("1.63", "1.85")}
    for image in images.values():
        del image["platform"]
    entries = [{**image, "annotations": {"org.opencontainers.image.ref.name": name}} for name, image in images.items()]
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    for name, image in images.items():
        assert _resolve(tmp_path, tag=name).manifest_digest == image["digest"]
    for tag in (None, "1.85"):
        with pytest.raises(ImageError) as caught:
            _resolve(tmp_path, tag=tag)
        assert "names there: docker.io/library/rust:1.63, docker.io/library/rust:1.85" in caught.value.hint


@pytest.mark.parametrize(
    ("arch", "platforms", "chosen"),
    [
        ("aarch64", ["arm64/v9", "arm64/v8", "arm64"], 1),
        ("aarch64", ["arm/v7", "arm64"], 1),
        ("x86_64", ["amd64/v3", "amd64/v1", "amd64"], 1),
        ("x86_64", ["amd64/v2", "x86_64"], 1),
        ("x86_64", ["arm64", None], 1),
        ("x86_64", [None, None, "amd64"], 2),
        ("x86_64", ["amd64/v3"], None),
        ("x86_64", ["unknown", "386"], None),
    ],
)
def test_the_platform_is_chosen_as_containerd_does(tmp_path: Path, arch: str, platforms: list[str | None], chosen: int | None) -> None:
    maker = LayoutMaker(tmp_path)
    entries = []
    for number, text in enumerate(platforms):
        entry = maker.image([maker.layer(tar(member(b"%d" % number)))], "arm64" if arch == "aarch64" else "amd64")
        name, _, variant = (text or "").partition("/")
        del entry["platform"]
        entries.append({**entry, "platform": {"os": "linux", "architecture": name, "variant": variant}} if text else entry)
    entries.insert(0, {**entries[-1], "mediaType": "application/vnd.example.sbom", "digest": "sha512:" + "0" * 128})
    maker.finish(maker.index(entries))
    if chosen is None:
        with pytest.raises(ImageError, match="its index has linux/"):
            _resolve(tmp_path, arch)
    else:
        assert _resolve(tmp_path, arch).manifest_digest == entries[chosen + 1]["digest"]


def test_entries_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    image = {**maker.image([maker.layer(LAYER)]), "urls": 3, "annotations": {"a": 1}, "data": None}
    odd: list[Any] = [
        3,
        None,
        [],
        {},
        {**CONFIG, "size": "3"},
        {**CONFIG, "digest": None},
        {**CONFIG, "mediaType": 3},
        {**image, "size": -1},
    ]
    maker.finish(maker.index([*odd, image]))
    assert _resolve(tmp_path).manifest_digest == image["digest"]


def test_a_manifest_that_is_an_index_too(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="an index too"):
        resolve(_Liar(json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [], "manifests": []}).encode()), "x86_64")


def test_a_folder_that_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not an OCI image layout") as caught:
        _resolve(tmp_path)
    assert "skopeo copy" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "taken"), [('{"imageLayoutVersion": "1.1.0"}', True), ("", True), (None, True), ('{"imageLayoutVersion": "2.0.0"}', False)]
)
def test_the_version_of_a_layout(tmp_path: Path, text: str | None, taken: bool) -> None:
    maker = LayoutMaker(tmp_path)
    maker.finish(maker.image([maker.layer(LAYER)]))
    (tmp_path / "oci-layout").unlink()
    if text is not None:
        (tmp_path / "oci-layout").write_text(text)
    if taken:
        _resolve(tmp_path)
    else:
        with pytest.raises(ImageError, match=r"version '2\.0\.0'"):
            _resolve(tmp_path)


def _artifact(maker: LayoutMaker, **changes: object) -> dict[str, Any]:
    """A minimal artifact (manifest.md, Guidelines for Artifact Usage)."""
    empty = maker.blob(b"{}", "application/vnd.oci.empty.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [empty], **changes}
    return maker.document(manifest, OCI_MANIFEST)


def test_an_artifact_is_named_as_one(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    maker.finish(_artifact(maker, artifactType="application/vnd.example.sbom\x1b[2J"))
    with pytest.raises(ImageError, match=r"an artifact of type 'application/vnd.example.sbom\\x1b\[2J', not a container image"):
        _resolve(tmp_path)


def test_an_artifact_beside_an_image_without_a_platform_is_passed_over(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    image = maker.image([maker.layer(LAYER)])
    del image["platform"]
    maker.finish(maker.index([_artifact(maker, artifactType="application/vnd.example.sbom", subject=image), image]))
    assert _resolve(tmp_path).manifest_digest == image["digest"]


def test_a_manifest_may_lack_its_schema_version(tmp_path: Path) -> None:
    """manifest.md: "This field MAY be removed"."""
    maker = LayoutMaker(tmp_path)
    image = maker.image([maker.layer(LAYER)])
    document = json.loads((maker.blobs / image["digest"].partition(":")[2]).read_bytes())
    del document["schemaVersion"]
    maker.finish(maker.document(document, OCI_MANIFEST))
    assert len(_resolve(tmp_path).layers) == 1


def test_a_missing_or_changed_document(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    image = maker.image([maker.layer(LAYER)])
    maker.finish(image)
    path = maker.blobs / image["digest"].removeprefix("sha256:")
    text = path.read_bytes()
    path.write_bytes(text.replace(b"schemaVersion", b"schemaversion"))
    with pytest.raises(RegistryError, match=f"asked for {image['digest']}"):
        _resolve(tmp_path)
    path.unlink()
    with pytest.raises(ImageError, match="lacks the blob"):
        _resolve(tmp_path)


@dataclasses.dataclass
class _Liar:
    """A source that gives one document whatever is asked."""

    data: bytes
    media_type: str = ""

    def root(self) -> tuple[str, bytes]:
        return self.media_type, self.data

    def document(self, descriptor: Descriptor) -> bytes:
        return self.data

    def blob(self, descriptor: Descriptor) -> Path:
        raise NotImplementedError


CONFIG: dict[str, Any] = {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 3}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"{}",
        b'{"schemaVersion": 1}',
        b'{"manifests": 3}',
        b'{"manifests": []}',
        b'{"manifests": [{"digest": "sha256:../../etc/passwd", "size": 1}]}',
        b'{"manifests": [{"digest": "sha512:00", "size": 1}]}',
        json.dumps({"manifests": [{**CONFIG, "size": -1}]}).encode(),
        json.dumps({"manifests": [{**CONFIG, "size": True}]}).encode(),
        json.dumps({"manifests": [{**CONFIG, "size": 1 << 60}]}).encode(),
        json.dumps({"manifests": [CONFIG]}).encode(),
        json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": {}}).encode(),
        json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [CONFIG]}).encode(),
        json.dumps({"schemaVersion": 2, "config": [], "layers": []}).encode(),
        json.dumps({"schemaVersion": 2, "config": CONFIG}).encode(),
        json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [{**CONFIG, "digest": CONFIG["digest"] + "\n"}]}).encode(),
        json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [CONFIG] * 513}).encode(),
        json.dumps({"schemaVersion": 2, "config": {**CONFIG, "platform": "linux"}, "layers": []}).encode(),
    ],
)
def test_documents_that_make_no_sense(document: bytes) -> None:
    with pytest.raises(ImageError):
        resolve(_Liar(document), "x86_64")


def test_an_index_of_itself_ends() -> None:
    class Endless(_Liar):
        depth = 0

        def document(self, descriptor: Descriptor) -> bytes:
            self.depth += 1
            return chain[self.depth]

    chain = [b'{"manifests": []}']
    for _ in range(10):
        entry = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(chain[-1]), "size": len(chain[-1])}
        chain.append(json.dumps({"manifests": [entry]}).encode())
    chain.reverse()
    with pytest.raises(RegistryError, match="3 indexes"):
        resolve(Endless(chain[0]), "x86_64")


def _config(**changes: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}
    return json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs, **changes}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"os": None},
        {"rootfs": None},
        {"rootfs": {"diff_ids": ["x"]}},
        {"rootfs": {"diff_ids": [3]}},
        {"config": {"Env": "A=b"}},
        {"config": {"Env": [3]}},
        {"config": {"Env": ["A=\0"]}},
        {"config": {"WorkingDir": 3}},
    ],
)
def test_configurations_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(RegistryError):
        parse_config(_config(**changes))


def test_layers_and_diff_ids_must_be_as_many(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path)
    layer = maker.layer(LAYER)
    manifest = maker.image([layer])
    path = maker.blobs / manifest["digest"].removeprefix("sha256:")
    document = json.loads(path.read_bytes())
    document["layers"].append(layer[0])
    maker.finish({**maker.document(document, document["mediaType"]), "platform": manifest["platform"]})
    with pytest.raises(RegistryError, match="2 layers, the configuration 1"):
        _resolve(tmp_path)


def test_media_types_of_layers_do_not_count(tmp_path: Path) -> None:
    """Builders get them wrong; Docker and skopeo look at the bytes, and so does the merge."""
    maker = LayoutMaker(tmp_path)
    descriptor, diff_id = maker.layer(LAYER)
    maker.finish(
        maker.image(
            [({**descriptor, "mediaType": "application/vnd.oci.image.layer.v1.tar"}, diff_id), ({**descriptor, "mediaType": "x"}, diff_id)]
        )
    )
    assert [layer.digest for layer in _resolve(tmp_path).layers] == [descriptor["digest"]] * 2
