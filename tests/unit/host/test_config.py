"""Every key has a default; what is unknown, mistyped or out of range is refused by name."""

from pathlib import Path

import pytest

from mayfly.errors import ConfigError
from mayfly.host.config import FIELDS, Config
from mayfly.units import MIB
from mayfly.vmm.config import Channel


def load(tmp_path: Path, text: str, **overrides: object) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return Config.load(overrides, path)


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    config = Config.load(path=tmp_path / "absent.yaml")
    assert (config.build_wall_s, config.run_wall_s, config.run_processes, config.run_output) == (60, 10, 128, MIB)
    assert config == Config()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing yet\n") == Config()


def test_values_of_every_type(tmp_path: Path) -> None:
    config = load(tmp_path, "socket: /run/x/api.sock\nlanguages: [rust, go]\nchannel: virtio\nrun_wall_s: 2\nqueue: 7\nuser: ''\n")
    assert config.socket == Path("/run/x/api.sock")
    assert config.languages == ("rust", "go")
    assert config.channel is Channel.VIRTIO
    assert (config.run_wall_s, config.queue, config.user) == (2.0, 7, "")


def test_overrides_win(tmp_path: Path) -> None:
    assert load(tmp_path, "queue: 7\n", queue=9).queue == 9


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("wall: 3\n", "'wall'"),
        ("queue: many\n", "queue is 'many'; it must be a whole number from 0 to 10000"),
        ("queue: true\n", "queue is True"),
        ("queue: 1.5\n", "queue is 1.5"),
        ("queue: -1\n", "queue is -1; it must be a whole number from 0 to 10000"),
        ("run_wall_s: .nan\n", "run_wall_s is nan"),
        ("run_wall_s: .inf\n", "run_wall_s is inf"),
        ("queue: .inf\n", "queue is inf"),
        ("run_wall_s: 0\n", "run_wall_s is 0; it must be a number from 0.05 to 86400"),
        ("channel: none\n", "serial or virtio or tcp"),
        ("sandbox: some\n", "auto or required or best_effort or off"),
        ("uid_range: '1000'\n", "FIRST-LAST"),
        ("uid_range: 0-9\n", "FIRST-LAST"),
        ("uid_range: 9-8\n", "FIRST-LAST"),
        ("uid_range: 1-4294967295\n", "from 1 to 4294967294"),
        ("network_backend: passt\nuid_range: 1879048192-1883242496\n", "passt's ids are 1883242496-1887436799"),
        ("network_backend: bridge\n", "none or tap or passt"),
        ("network_taps: mayfly0\n", "it must be a list"),
        ("channel: carrier-pigeon\n", "serial or virtio or tcp"),
        ("languages: rust\n", "it must be a list"),
        ("socket: 3\n", "a path"),
        ("- a\n", "mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert named in caught.value.message
    assert caught.value.hint


def test_every_key_says_what_it_means() -> None:
    assert all(field.meaning for field in FIELDS.values())
