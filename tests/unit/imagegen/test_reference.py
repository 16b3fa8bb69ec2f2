"""References as people write them."""

from pathlib import Path

import pytest

from mayfly.errors import ConfigError
from mayfly.imagegen.oci.reference import LayoutReference, RegistryReference, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "endpoint"),
    [
        ("rust", "docker.io/library/rust:latest", "registry-1.docker.io"),
        ("rust:1-slim", "docker.io/library/rust:1-slim", "registry-1.docker.io"),
        ("docker.io/library/rust:1-slim", "docker.io/library/rust:1-slim", "registry-1.docker.io"),
        ("docker.io/rust", "docker.io/library/rust:latest", "registry-1.docker.io"),
        ("index.docker.io/a/b", "docker.io/a/b:latest", "registry-1.docker.io"),
        ("a/b:c", "docker.io/a/b:c", "registry-1.docker.io"),
        ("ghcr.io/a/b/c:1.0_x", "ghcr.io/a/b/c:1.0_x", "ghcr.io"),
        ("Registry/rust", "Registry/rust:latest", "Registry"),  # as docker reads it
        ("localhost/rust", "localhost/rust:latest", "localhost"),
        ("localhost:5000/rust:x", "localhost:5000/rust:x", "localhost:5000"),
        ("127.0.0.1:5000/rust", "127.0.0.1:5000/rust:latest", "127.0.0.1:5000"),
        ("[::1]:5000/rust", "[::1]:5000/rust:latest", "[::1]:5000"),
        (f"rust@{DIGEST}", f"docker.io/library/rust@{DIGEST}", "registry-1.docker.io"),
        (f"q.io/rust:1@{DIGEST}", f"q.io/rust:1@{DIGEST}", "q.io"),
    ],
)
def test_registry_references(text: str, full: str, endpoint: str) -> None:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    assert str(reference) == full
    assert reference.endpoint == endpoint
    assert parse_reference(full) == reference


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("oci:layout", "layout", None),
        ("oci:/a/b:1.2", "/a/b", "1.2"),
        ("oci:a:docker.io/library/rust:1.85-slim", "a", "docker.io/library/rust:1.85-slim"),
        ("oci:a:", "a", None),
        ("oci:./x:latest", "x", "latest"),
    ],
)
def test_layout_references(text: str, path: str, tag: str | None) -> None:
    assert parse_reference(text) == LayoutReference(path=Path(path), tag=tag)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "oci:",
        "oci::x",
        "oci:x:a b",
        "oci:x:\u202e",
        "oci:x:" + "n" * 513,
        "Rust",
        "a//b",
        "a/../b",
        "rust:",
        "rust:a b",
        "rust@sha256:12",
        "rust@md5:x",
        "-x.y/a",
        "a b.c/d",
        "x.y:123456/a",
        "a/b:c:d",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert "oci:FOLDER" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("localhost:1/a", True),
        ("127.0.0.1/a", True),
        ("127.9.9.9:5/a", True),
        ("[::1]:5/a", True),
        ("rust", False),
        ("localhost.example.org/a", False),
        ("127.0.0.1.example.org/a", False),
        ("10.0.0.1:5000/a", False),
    ],
)
def test_loopback(text: str, loopback: bool) -> None:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    assert reference.is_loopback is loopback


def test_a_digest_wins_over_a_tag() -> None:
    reference = parse_reference(f"rust:1@{DIGEST}")
    assert isinstance(reference, RegistryReference)
    assert reference.target == DIGEST
