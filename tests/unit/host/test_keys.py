"""API keys: only their owner has a token, and a server knows at once what has changed."""

from pathlib import Path

import pytest

from mayfly.errors import ConfigError, HostError
from mayfly.host.keys import Keyring, create, load, revoke
from mayfly.units import MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


def test_a_token_is_kept_as_a_hash_alone(path: Path) -> None:
    token = create(path, "site", rate=60, concurrency=4, memory=512 * MIB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.rpartition("_")[2] not in path.read_text()
    (key,) = load(path)
    assert (key.name, key.rate, key.concurrency, key.memory) == ("site", 60, 4, 512 * MIB)
    known = Keyring(path).find(token)
    assert known is not None
    assert known.key == key
    assert (known.tenant.rate, known.tenant.concurrency, known.tenant.memory) == (60, 4, 512 * MIB)


def test_what_is_not_a_token_finds_nothing(path: Path) -> None:
    token = create(path, "site")
    (key,) = load(path)
    ring = Keyring(path)
    for wrong in (
        "",
        "x",
        "é\ud800",
        token[:-1],
        token + "x",
        token.swapcase(),
        key.hash,
        key.id,
        f"mayfly_{key.id}_{'x' * 43}",
        token * 9,
    ):
        assert ring.find(wrong) is None, wrong
    assert ring.find(token) is not None


def test_changes_count_at_once(path: Path) -> None:
    ring = Keyring(path)
    assert len(ring) == 0
    one = create(path, "one")
    first = ring.find(one)
    assert first is not None
    two = create(path, "two")
    assert ring.find(two) is not None
    again = ring.find(one)
    assert again is not None
    assert again.tenant is first.tenant, "its runs would be forgotten"
    revoke(path, "one")
    assert ring.find(one) is None
    assert ring.find(two) is not None
    create(path, "one")
    assert ring.find(one) is None
    path.unlink()
    assert ring.find(two) is None


def test_names_are_taken_once(path: Path) -> None:
    create(path, "one")
    with pytest.raises(ConfigError, match="already"):
        create(path, "one")
    for name in ("", "-x", "a b", "a/b", "é", "x" * 65, "a\n"):
        with pytest.raises(ConfigError, match="cannot be a key's name"):
            create(path, name)
    with pytest.raises(ConfigError, match="no key"):
        revoke(path, "two")
    assert [key.name for key in load(path)] == ["one"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"keys": [{}]}', '{"keys": [{"id": "a", "name": "b", "hash": "c", "created": "d", "rate": -1}]}']
)
def test_a_broken_file_lets_nobody_in(path: Path, text: str) -> None:
    token = create(path, "one")
    ring = Keyring(path)
    assert ring.find(token) is not None
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(HostError, match="cannot be read"):
            ring.find(token)


def test_a_key_that_a_server_issues_is_known_to_it_alone(path: Path) -> None:
    ring = Keyring(path)
    token = ring.issue("page")
    known = ring.find(token)
    assert known is not None
    assert (known.key.name, len(ring)) == ("page", 1)
    assert ring.find(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    assert Keyring(path).find(token) is None
    assert not path.exists()
    create(path, "another")  # the file is read again
    assert ring.find(token) is known
