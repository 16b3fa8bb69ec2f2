"""Prepare steps: what they make becomes part of the image, once; what a machine may do wrong then.
The agent is an ordinary process.
"""

import asyncio
import dataclasses
import io
import platform
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import mayfly.imagegen.build
import mayfly.imagegen.prepare
from mayfly.errors import HostError, ImageError
from mayfly.guests.job import Job
from mayfly.imagegen.build import Built, build
from mayfly.imagegen.languages import Language
from mayfly.imagegen.oci.reference import LayoutReference
from mayfly.imagegen.options import Options
from mayfly.imagegen.prepare import bring_home
from mayfly.imagegen.progress import Silent
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.images import manifest
from mayfly.paths import kernel_path
from mayfly.protocol import frames as p
from tests.kit.agent_process import build_agent
from tests.kit.api_fakes import FakeZygote
from tests.kit.imagegen_kit import LayoutMaker, member, read_cpio, tar, toy_language
from tests.kit.played_guest import EXIT, RAN, STEP, played_guest

GOOD_STEP = "chmod 600 made/a; chmod 777 made/deep; head -c 100000 /dev/zero >made/zeros"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[FakeZygote]:
    """A host where machines run. Gives those that did: as processes, which find no end marker."""
    executable = build_agent()
    monkeypatch.setattr(mayfly.imagegen.build, "AGENTS", executable.parent)
    zygotes: list[FakeZygote] = []

    def start() -> FakeZygote:
        zygotes.append(FakeZygote(executable=executable))
        return zygotes[-1]

    kernel = kernel_path(platform.machine())
    kernel.parent.mkdir(parents=True)
    kernel.touch()
    monkeypatch.setattr(mayfly.imagegen.prepare, "Zygote", SimpleNamespace(start=start))
    monkeypatch.setattr(mayfly.imagegen.prepare, "probe", lambda: SimpleNamespace(usable=True))
    monkeypatch.setattr(mayfly.imagegen.prepare, "load", lambda folder: msgspec.structs.replace(manifest.load(folder), end_marker=""))
    return zygotes


def _options(tmp_path: Path, step: str = GOOD_STEP, *, optional: bool = False, **changes: object) -> Options:
    layout = tmp_path / "layout"
    if not layout.exists():
        maker = LayoutMaker(layout)
        maker.finish(maker.image([maker.layer(tar(member(b"etc/toy-version", b"3")))], env=["PATH=/usr/bin:/bin"]))
    first = 'mkdir -p made/deep; echo "$WHAT" >made/deep/b; : >made/a; ln -s a made/link'
    steps = [{"name": name, "argv": ["sh", "-ec", script]} for name, script in (("first", first), ("second", step))]
    prepared = {"working_memory_mib": 20, "steps": steps, "collect": ["/work/made"], "optional": optional}
    language = toy_language(prepare=prepared, env={"WHAT": "thing"})
    return Options(**{"language": language, "reference": LayoutReference(path=layout), "compression": "none", **changes})  # type: ignore[arg-type]


class Said(Silent):
    """The lines that a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def _made(built: Built) -> dict[str, tuple[int, int, int, bytes]]:
    archive = read_cpio((built.folder / "initramfs").read_bytes())
    found = [entry for entry in archive if entry.name.startswith(b"work/made")]
    return {entry.name.decode(): (entry.mode, entry.uid, entry.mtime, entry.data) for entry in found}


def test_what_the_steps_make_is_in_the_image(machines: list[FakeZygote], tmp_path: Path) -> None:
    built = build(_options(tmp_path), Silent())
    assert _made(built) == {
        "work/made": (stat.S_IFDIR | 0o755, 0, 0, b""),
        "work/made/a": (stat.S_IFREG | 0o600, 0, 0, b""),
        "work/made/deep": (stat.S_IFDIR | 0o775, 0, 0, b""),
        "work/made/deep/b": (stat.S_IFREG | 0o644, 0, 0, b"thing\n"),
        "work/made/zeros": (stat.S_IFREG | 0o644, 0, 0, bytes(100_000)),
    }
    assert [step.name for step in built.manifest.steps] == ["run"]
    assert len(machines) == 1


def test_it_is_made_once_and_the_image_is_the_same(machines: list[FakeZygote], tmp_path: Path) -> None:
    first = build(_options(tmp_path), Silent())
    again = build(_options(tmp_path, folder=tmp_path / "other"), Silent())
    assert again.fresh
    assert len(machines) == 1
    assert (again.folder / "initramfs").read_bytes() == (first.folder / "initramfs").read_bytes()
    assert build(_options(tmp_path, force=True), Silent()).manifest == first.manifest
    assert len(machines) == 2
    build(_options(tmp_path, step="true"), Silent())
    assert len(machines) == 3


def test_a_step_that_fails_is_told_with_its_output(machines: list[FakeZygote], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"exited 3[\s\S]*no such luck"):
        build(_options(tmp_path, step="echo no such luck >&2; exit 3"), Silent())
    assert [path.name for path in (tmp_path / "cache/mayfly").iterdir() if path.name.startswith("prepare.")] == []
    assert list((tmp_path / "cache/mayfly/prepared").iterdir()) == []
    assert not list((tmp_path / "data").rglob("manifest.json"))


def asking(version: str) -> Language:
    """A language whose compiler says that it has this version."""
    script = f'echo noise >&2; printf "toyc %s \\033[1m(of today)\\n" {version}'
    return toy_language(version_command=["sh", "-c", script], working_memory_mib=20)


def test_the_compiler_says_its_version_where_a_machine_can_ask_it(
    machines: list[FakeZygote], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is the same either way, and what was asked once is known."""
    language = asking("3")
    monkeypatch.setattr(mayfly.imagegen.prepare, "probe", lambda: SimpleNamespace(usable=False, reason="there is no KVM"))
    shown = build(_options(tmp_path, language=language), Silent())
    assert (shown.manifest.version, shown.manifest.compiler) == ("3", "")
    assert not build(_options(tmp_path, language=language), Silent()).fresh
    monkeypatch.setattr(mayfly.imagegen.prepare, "probe", lambda: SimpleNamespace(usable=True))
    asked = build(_options(tmp_path, language=language), Silent())
    assert (asked.fresh, asked.manifest.version, asked.manifest.compiler) == (True, "3", "toyc 3 [1m(of today)")
    assert asked.manifest == msgspec.structs.replace(shown.manifest, compiler=asked.manifest.compiler)
    assert not build(_options(tmp_path, language=language), Silent()).fresh
    monkeypatch.setattr(mayfly.imagegen.prepare, "probe", lambda: SimpleNamespace(usable=False, reason="there is no KVM"))
    again = build(_options(tmp_path, language=language, folder=tmp_path / "other"), Silent())
    assert again.manifest == asked.manifest
    assert build(_options(tmp_path, language=language, force=True), Silent()).manifest == asked.manifest
    assert len(machines) == 1
    monkeypatch.setattr(mayfly.imagegen.prepare, "probe", lambda: SimpleNamespace(usable=True))
    assert build(_options(tmp_path, language=language, force=True), Silent()).manifest == asked.manifest
    assert len(machines) == 2


def test_a_compiler_of_another_version_is_refused(machines: list[FakeZygote], tmp_path: Path) -> None:
    language = asking("4")
    with pytest.raises(ImageError, match=r"files show toy 3, the compiler says 'toyc 4"):
        build(_options(tmp_path, language=language), Silent())


def test_a_machine_of_another_architecture_or_without_a_kernel_cannot_be_had(machines: list[FakeZygote]) -> None:
    assert mayfly.imagegen.prepare.why_not(platform.machine()) == ""
    assert "another architecture than vax" in mayfly.imagegen.prepare.why_not("vax")
    kernel_path(platform.machine()).unlink()
    assert "mayfly kernel build" in mayfly.imagegen.prepare.why_not(platform.machine())


@pytest.mark.parametrize(
    ("suffix", "damage"), [(".tar", lambda data: data[:-1]), (".tar", lambda data: b"x" + data[1:]), (".sha256", lambda _: b"")]
)
def test_what_was_damaged_in_the_cache_is_made_anew(
    machines: list[FakeZygote], tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    good = _made(build(_options(tmp_path), Silent()))
    (path,) = (tmp_path / "cache/mayfly/prepared").glob(f"*{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    said = Said()
    assert _made(build(_options(tmp_path, folder=tmp_path / "other"), said)) == good
    assert [line for line in said.lines if "is damaged" in line] == [f"{path.with_suffix('.tar')} is damaged and is made anew"]
    build(_options(tmp_path, folder=tmp_path / "third"), Silent())
    assert len(machines) == 2


def test_a_limit_holds_for_what_was_prepared(machines: list[FakeZygote], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="50000 bytes to collect"):
        build(_options(tmp_path, limits=Limits(unpacked=50_000)), Silent())


def test_a_host_without_machines_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mayfly.imagegen.build, "AGENTS", build_agent().parent)
    monkeypatch.setattr(mayfly.imagegen.prepare, "probe", lambda: SimpleNamespace(usable=False, reason="there is no KVM"))
    with pytest.raises(HostError, match="there is no KVM") as caught:
        build(_options(tmp_path), Silent())
    assert "--prepare-with" in caught.value.hint


def test_what_is_optional_is_made_once_there_is_a_machine(
    machines: list[FakeZygote], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said()
    with monkeypatch.context() as patch:
        patch.setattr(mayfly.imagegen.prepare, "probe", lambda: SimpleNamespace(usable=False, reason="there is no KVM"))
        without = build(_options(tmp_path, optional=True), said)
        assert build(_options(tmp_path, optional=True, force=True), said).manifest == without.manifest
    assert _made(without) == {}
    assert "no machine can run here: what it would make, first, second, is left out" in said.lines
    assert "work/made/a" in _made(build(_options(tmp_path, optional=True, force=True), said))
    assert len(machines) == 1


def test_another_command_may_run_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mayfly.imagegen.build, "AGENTS", build_agent().parent)
    made = tmp_path / "made.tar"
    made.write_bytes(tar(member(b"work/made", b"elsewhere")))
    script = tmp_path / "elsewhere"
    script.write_text(f'#!/bin/sh\n[ "$*" = "imagegen prepare $3 $4 /work/made" ] && test -s "$3/initramfs" && cp {made} "$4"\n')
    script.chmod(0o755)
    built = build(_options(tmp_path, prepare_with=(str(script),)), Silent())
    assert _made(built)["work/made"][3] == b"elsewhere"
    with pytest.raises(ImageError, match="by false"):
        build(_options(tmp_path, prepare_with=("false",), force=True), Silent())
    with pytest.raises(HostError, match="/nonexistent cannot be started: No such file or directory"):
        build(_options(tmp_path, prepare_with=("/nonexistent",), force=True), Silent())


# --- an agent that is not ours: what its answer may be, test_converse.py shows ---


def test_a_limit_that_is_passed_is_the_images_fault() -> None:
    head = p.FileEntry("/work/a", 0o100644, 1 << 40)
    with pytest.raises(ImageError, match="1048576 bytes to collect") as caught:
        _talk([*RAN, p.Collected(0, head, False, False, b"")])
    assert "--max-unpacked" in caught.value.hint


def test_a_step_that_meets_a_limit_is_told() -> None:
    with pytest.raises(ImageError, match="limit memory"):
        _talk([p.Stage(0, "x"), dataclasses.replace(EXIT, limit=p.Limit.MEMORY), p.Done()])


def test_the_tar_is_padded() -> None:
    head = p.FileEntry("/work/a", 0o100644, 1)
    out = _talk([*RAN, p.Collected(0, head, True, False, b"1"), p.Collected(0, None, False, True, b"")])
    assert out[257:262] == b"ustar"
    assert out[512:513] == b"1"
    assert len(out) == 4 * 512


def _talk(messages: list[p.Message]) -> bytes:
    out = io.BytesIO()
    job = Job(start=p.Start((), (STEP,), ()), deadline_s=30.0, rate=1e6)
    limits = Limits(entries=10, unpacked=1 << 20)
    asyncio.run(bring_home(played_guest(*messages), job, ["/work"], out, limits, Silent()))
    return out.getvalue()
