"""The function file: what it may say, in our words and in SnapFaaS's, and what is refused how."""

from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError
from mayfly.functions.spec import FunctionSpec, SnapshotOptions, load_specs
from mayfly.units import GIB, MIB


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Load a text."""

    def call(text: str) -> list[FunctionSpec]:
        path = tmp_path / "functions.yaml"
        path.write_text(text)
        return load_specs(path)

    return call


LEAST = "name: hello\nlanguage: python\ncode: hello.py\n"


def test_the_least_that_a_function_needs(load: Any, tmp_path: Path) -> None:
    (spec,) = load(LEAST)
    assert spec == FunctionSpec(name="hello", language="python", code=str(tmp_path / "hello.py"))
    assert (spec.vcpus, spec.concurrency_limit, spec.queue, spec.min_guests) == (1, 1, 64, 0)
    assert spec.snapshot == SnapshotOptions(base=True, diff=True)


def test_one_a_list_and_several_documents(load: Any) -> None:
    item = "- {name: %s, language: go, code: /src}\n"
    assert [spec.name for spec in load(item % "a" + item % "b")] == ["a", "b"]
    assert [spec.name for spec in load("name: a\nlanguage: go\ncode: x\n---\n" + item % "b" + "---\n")] == ["a", "b"]
    assert [spec.name for spec in load('{"name": "json", "language": "go", "code": "x"}')] == ["json"]


@pytest.mark.parametrize(("text", "size"), [("512M", 512 * MIB), ("1G", GIB), ("524288K", 512 * MIB), ("536870912", 512 * MIB)])
def test_sizes(load: Any, text: str, size: int) -> None:
    (spec,) = load(f"{LEAST}memory: {text}\n")
    assert spec.memory == size


def test_paths_are_relative_to_the_file(load: Any, tmp_path: Path) -> None:
    (spec,) = load("name: a\nlanguage: go\ncode: src/fun")
    assert spec.code == str(tmp_path / "src/fun")
    (spec,) = load("name: a\nlanguage: go\ncode: /src/fun")
    assert spec.code == "/src/fun"


def test_what_snapfaas_calls_it(load: Any, tmp_path: Path) -> None:
    (spec,) = load(
        "- name: hello\n  runtimefs: images/python3-net.ext4\n  appfs: hello\n  vcpus: 2\n  memory: 128\n"
        "  concurrency_limit: 600\n  load_dir: base,diff\n  copy_base: true\n  load_ws: false\n"
    )
    assert (spec.language, spec.code, spec.memory, spec.vcpus) == ("python", str(tmp_path / "hello"), 128 * MIB, 2)
    assert spec.concurrency_limit == 600
    assert spec.snapshot == SnapshotOptions(base=True, diff=True, copy_base=True, load_ws=False)


@pytest.mark.parametrize(
    ("text", "base", "diff"),
    [
        ("load_dir: [python3]", True, False),
        ("load_dir: python3\ndiff_dirs: hello", True, True),
        ("load_dir: ''", False, False),
        ("load_dir: 'python3,hello'", True, True),
        ("snapshot: {base: python3, diff: ''}", True, False),
        ("snapshot: {base: false}", False, True),
        ("diff_dirs: hello", True, True),
    ],
)
def test_names_of_layers_say_which_there_are(load: Any, text: str, base: bool, diff: bool) -> None:
    (spec,) = load(LEAST + text)
    assert (spec.snapshot.base, spec.snapshot.diff) == (base, diff)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no function"),
        ("[]", "there is no function"),
        ("a: [", "not YAML"),
        ("just text", "function number 1: it must be a mapping"),
        ("{1: 2}", "function number 1: it must be a mapping"),
        ("name: hello\nlanguage: python", "function 'hello': the field 'code' is missing"),
        (LEAST + "memry: 3", "did you mean 'memory'"),
        (LEAST + "memory: 128", "write it with its unit"),
        (LEAST + "memory: lots", "which is not a size"),
        (LEAST + "vcpus: 0", "from 1 to 64"),
        (LEAST + "timeout_s: soon", "a number"),
        (LEAST + "min_guests: 2", "min_guests is 2, concurrency_limit 1"),
        (LEAST + "checkpoint_every_s: 0.5", "checkpoint_every_s is 0.5; at least 1"),
        (LEAST + "checkpoint_every_s: .nan", "checkpoint_every_s"),
        (LEAST + "checkpoint_every_s: -1", "checkpoint_every_s"),
        (LEAST + "checkpoint_every_s: 5\nnetwork: true", "checkpoint_every_s is not for a function with a network"),
        (LEAST + "checkpoint_every_s: 30", "checkpoint_every_s is 30, timeout_s 30: no request takes so long"),
        (LEAST + "env: {'': x}", "env: '' is not usable"),
        (LEAST + "entry: 'a; b'", "entry is 'a; b'"),
        (LEAST + "snapshot: 3", "snapshot is 3"),
        (LEAST + "snapshot: {base: 3}", "snapshot.base is 3"),
        (LEAST + "code: ''", "code is empty"),
        ('{"name": "a\\n", "language": "go", "code": "x"}', "is not usable"),
        ("name: ../x\nlanguage: go\ncode: x", "name is '../x'"),
        ("name: a\nruntimefs: ruby.ext4\ncode: x", "write language: NAME in its place"),
        ("name: a\nlanguage: go\nruntimefs: go.ext4\ncode: x", "runtimefs and language mean the same"),
        ("name: a\nlanguage: go\nappfs: hello.ext2", "write code: PATH in its place"),
        (LEAST + "load_dir: a,b,c", "load_dir names 3 snapshots"),
        (LEAST + "load_dir: 3", "write snapshot:"),
        (LEAST + "---\n" + LEAST, "two functions have the name 'hello'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_write(load: Any, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert "functions.yaml" in caught.value.message
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_a_file_that_is_not_there_or_is_huge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_specs(tmp_path / "none")
    huge = tmp_path / "huge"
    huge.write_bytes(b"#" * (MIB + 1))
    with pytest.raises(ConfigError, match="at most"):
        load_specs(huge)
