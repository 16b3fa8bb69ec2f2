"""Images are found by language, version and file; a plan has the limits that host, manifest and
snippet agree on.
"""

import json
import platform
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mayfly import paths
from mayfly.errors import BodyTooLargeError, ConfigError, RequestError, UnknownLanguageError, UnprocessableError
from mayfly.host.config import Config
from mayfly.host.plan import KERNEL_RESERVE, make_plan, make_standby, want_machine
from mayfly.host.snippet import Case, Snippet, Terminal
from mayfly.images.manifest import LanguageStep, Option, Profile
from mayfly.images.store import Images, InstalledImage, targeted
from mayfly.protocol.frames import MAX_FILES_SIZE
from mayfly.units import MIB
from mayfly.vmm.config import Channel, NetworkBackend, NetworkConfig
from tests.kit.api_fakes import install, install_toys


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


def toy() -> InstalledImage:
    return Images().find("toy")


def test_the_default_goes_before_the_highest_fitting_version() -> None:
    steps = (LanguageStep(name="run", argv=("x",)),)
    for version in ("1.9", "1.85.1", "1.85.0", "2.0"):
        install("rust", ".rs", steps, version, f"rust@{version}")
    assert [Images().find(name).manifest.version for name in ("rust", "rust@1", "rust@1.85", "rust@1.85.0", "rust@1.9")] == [
        "2.0",
        "1.85.1",
        "1.85.1",
        "1.85.0",
        "1.9",
    ]
    assert Images(("rust@1.9",)).find("rust").manifest.version == "1.9"
    install("rust", ".rs", steps, "1.63.0", "rust")
    found = [(image.manifest.version, image.is_default) for image in Images().installed() if image.manifest.language == "rust"]
    assert found == [("1.63.0", True), ("2.0", False), ("1.85.1", False), ("1.85.0", False), ("1.9", False)]
    assert [Images().find(name).manifest.version for name in ("rust", "rust@1", "rust@1.85")] == ["1.63.0", "1.63.0", "1.85.1"]
    with pytest.raises(UnknownLanguageError):
        Images().find("rust@1.8")


def test_a_target_is_another_image_of_the_language() -> None:
    steps = (LanguageStep(name="run", argv=("x",)),)
    install("rust-wasm", ".rs", steps, "1.85", target="wasm")
    install("wasm", ".wasm", steps, "13")
    with pytest.raises(UnknownLanguageError, match=r"no language has the extension '\.rs'"):
        Images().for_file(Path("f.rs"))
    install("rust", ".rs", steps, "1.85")

    def found(name: str, target: str) -> str:
        return Images().for_file(Path(name), target).manifest.language

    assert (found("f.rs", ""), found("f.rs", "wasm"), found("f.wasm", ""), found("f.wasm", "wasm")) == ("rust", "rust-wasm", "wasm", "wasm")
    with pytest.raises(UnknownLanguageError, match=r"no language with the target wasm has the extension '\.toy'"):
        Images().for_file(Path("f.toy"), "wasm")
    assert [targeted(name, "wasm") for name in ("rust", "rust@1.85", "wasm")] == ["rust-wasm", "rust-wasm@1.85", "wasm"]
    assert targeted("rust", "") == "rust"


def test_a_broken_image_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    (paths.image_dir("toy", platform.machine()) / "initramfs").write_bytes(b"short of it")
    assert [image.manifest.language for image in Images().installed()] == ["py", "real"]
    assert "11 bytes, its manifest says 4" in caplog.text


@pytest.mark.parametrize("name", ["", "..", "../toy", "toy/x86_64", "Toy", "toy@", "toy@1.0/..", "toy\n", "t" * 10_000])
def test_odd_names_are_unknown(name: str) -> None:
    with pytest.raises(UnknownLanguageError):
        Images().find(name)


def test_images_of_another_architecture_do_not_count() -> None:
    assert Images(arch="vax").installed() == []


def test_an_image_in_another_architectures_folder_is_named() -> None:
    here = paths.image_dir("toy", platform.machine())
    here.rename(here.with_name("vax"))
    with pytest.raises(UnknownLanguageError, match=f"the image is for {platform.machine()}, machines here are vax"):
        Images(arch="vax").find("toy")


def test_limits_are_the_least_of_what_is_asked_and_allowed() -> None:
    config = Config(run_wall_s=10, build_wall_s=60, run_processes=50).scaled(3.0)
    limits = {"run": {"wall_s": 2.0, "processes": 10, "output": 1000, "cpu_s": 1.5}}
    build, run = make_plan(Snippet(source=b"", limits=limits), toy(), config).job.start.steps
    assert (build.wall_ms, build.cpu_ms, build.processes, build.output) == (180_000, 0, 128, MIB)
    assert (run.wall_ms, run.cpu_ms, run.processes, run.output) == (6_000, 4_500, 10, 1000)
    with pytest.raises(UnprocessableError, match=r"limits.run.wall_s is 11; this server allows at most 10"):
        make_plan(Snippet(source=b"", limits={"run": {"wall_s": 11.0}}), toy(), config)


def test_a_manifests_limit_goes_before_the_servers() -> None:
    image = toy()
    step = msgspec.structs.replace(image.manifest.steps[1], wall_s=30.0, memory=5 * MIB)
    image = image._replace(manifest=msgspec.structs.replace(image.manifest, steps=(step,)))
    (run,) = make_plan(Snippet(source=b"", limits={"run": {"wall_s": 20.0}}), image, Config()).job.start.steps
    assert (run.wall_ms, run.memory) == (20_000, 5 * MIB)
    step = msgspec.structs.replace(step, stdin=True)
    image = image._replace(manifest=msgspec.structs.replace(image.manifest, steps=(step,)))
    (run,) = make_plan(Snippet(source=b"", interactive=True), image, Config()).job.start.steps
    assert (run.wall_ms, run.memory) == (300_000, 5 * MIB)


def test_memory_is_what_the_image_needs_or_more_and_steps_get_what_is_free() -> None:
    plan = make_plan(Snippet(source=b""), toy(), Config(memory=200 * MIB + 1))
    assert plan.wanted.machine.memory == 201 * MIB
    assert plan.job.start.steps[0].memory == 201 * MIB - 32 * MIB - KERNEL_RESERVE
    assert make_plan(Snippet(source=b""), toy(), Config(memory=MIB)).wanted.machine.memory == 128 * MIB


def test_the_machine_is_as_configured() -> None:
    machine = make_plan(Snippet(source=b""), toy(), Config(channel=Channel.VIRTIO, cpus=2, user="", kernel=Path("/k"))).wanted.machine
    assert (machine.channel, machine.cpus, machine.user, machine.kernel) == (Channel.VIRTIO, 2, None, "/k")
    assert machine.initrd == str(toy().initramfs)


def test_arguments_environment_and_files() -> None:
    plan = make_plan(Snippet(source=b"s", args=("a", "{args}"), env={"LANG": "de", "X": ""}, files={"d/x": b"data"}), toy(), Config())
    assert plan.job.start.steps[1].argv == ("sh", "main.toy", "a", "{args}")
    assert dict(plan.job.start.env) == {"LANG": "C.UTF-8"}
    assert [dict(step.env) for step in plan.job.start.steps] == [{}, {"LANG": "de", "X": ""}]
    assert [(entry.path, entry.size) for entry in plan.job.start.files] == [("main.toy", 1), ("d/x", 4)]
    assert plan.job.files == (b"s", b"data")


def test_files_together_have_a_limit() -> None:
    half = b"x" * (MAX_FILES_SIZE // 2)
    make_plan(Snippet(source=half, files={"a": half}), toy(), Config())
    with pytest.raises(BodyTooLargeError):
        make_plan(Snippet(source=half, files={"a": half, "b": b"x"}), toy(), Config())


def test_what_does_not_fit_into_a_start_frame_is_refused() -> None:
    with pytest.raises(RequestError):
        make_plan(Snippet(source=b"", env={f"V{n}": "x" * 1000 for n in range(100)}), toy(), Config())


def test_a_channel_over_tcp_needs_a_network_and_is_virtio_without_one() -> None:
    config = Config(channel=Channel.TCP, network_backend=NetworkBackend.PASST)
    network = NetworkConfig(backend=NetworkBackend.PASST, mac="02:00:00:00:00:02", addresses=("10.87.0.2/16",), gateways=("10.87.0.1",))
    assert want_machine(toy(), config, network).machine.channel is Channel.TCP
    assert want_machine(toy(), config).machine.channel is Channel.VIRTIO
    with pytest.raises(ConfigError, match="no run has a network"):
        Config(channel=Channel.TCP)


@pytest.mark.parametrize("cpu_s", [1e-9, 0.0004, 0.0005, 1.0])
def test_a_limit_that_rounds_to_nothing_is_still_a_limit(cpu_s: float) -> None:
    """0 in START means no limit."""
    steps = make_plan(Snippet(source=b"", limits={"run": {"cpu_s": cpu_s}}), toy(), Config(run_cpu_s=5.0)).job.start.steps
    assert steps[1].cpu_ms == max(1, round(cpu_s * 1000))


def test_build_env_reaches_the_build_and_env_the_program() -> None:
    plan = make_plan(Snippet(source=b"", env={"A": "1"}, build_env={"B": "2"}), toy(), Config())
    assert [dict(step.env) for step in plan.job.start.steps] == [{"B": "2"}, {"A": "1"}]


def test_options_fill_the_steps() -> None:
    image = toy()
    step = msgspec.structs.replace(image.manifest.steps[1], argv=("sh", "--edition={edition}", "{args}"))
    options = {"edition": Option(values=("2021", "2024"), default="2024")}
    image = image._replace(manifest=msgspec.structs.replace(image.manifest, steps=(step,), options=options))

    def argv(**chosen: str) -> tuple[str, ...]:
        return make_plan(Snippet(source=b"", args=("{edition}",), options=chosen), image, Config()).job.start.steps[0].argv

    assert argv() == ("sh", "--edition=2024", "{edition}")
    assert argv(edition="2021") == ("sh", "--edition=2021", "{edition}")
    with pytest.raises(UnprocessableError, match=r"options.edition is '2018'; toy .* has 2021, 2024"):
        argv(edition="2018")
    with pytest.raises(UnprocessableError, match="no such option"):
        argv(color="red")


def test_an_option_takes_addresses() -> None:
    image = toy()
    step = msgspec.structs.replace(image.manifest.steps[1], argv=("sh", "--listen", "{listen}"))
    options = {"listen": Option(values=(), default="", takes="addresses")}
    image = image._replace(manifest=msgspec.structs.replace(image.manifest, steps=(step,), options=options))

    def listen(value: str) -> str:
        return make_plan(Snippet(source=b"", options={"listen": value}), image, Config()).job.start.steps[0].argv[2]

    assert make_plan(Snippet(source=b""), image, Config()).job.start.steps[0].argv == ("sh", "--listen", "")
    for good in ("", "0.0.0.0:8080", "127.0.0.1:1,[::1]:65535"):
        assert listen(good) == good
    for bad in (
        ":80",
        "localhost:80",
        "1.2.3.4",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:+8",
        "1.2.3.4:٣",
        "::1:80",
        "[1.2.3.4]:80",
        "[fe80::1%1]:80",
    ):
        with pytest.raises(UnprocessableError, match=r"options.listen has .*, which is not an address") as raised:
            listen(f"0.0.0.0:8080,{bad}")
        assert repr(bad) in str(raised.value)
    with pytest.raises(UnprocessableError, match="'', which is not an address"):
        listen("0.0.0.0:80,")
    with pytest.raises(UnprocessableError, match="17 addresses; at most 16"):
        listen(",".join(["0.0.0.0:80"] * 17))


def test_source_and_files_that_exclude_each_other() -> None:
    with pytest.raises(UnprocessableError, match=r"'main\.toy' is both a file and the folder of 'main\.toy/x'"):
        make_plan(Snippet(source=b"", files={"main.toy/x": b""}), toy(), Config())


def test_cases_are_built_once() -> None:
    cases = (Case(), Case(args=("b",), limits={"wall_s": 1.5}))
    snippet = Snippet(source=b"", args=("a",), limits={"run": {"wall_s": 2.0, "output": 10}}, cases=cases)
    plan = make_plan(snippet, toy(), Config())
    build = plan.job.start
    assert ([step.name for step in build.steps], build.keep, build.from_products, len(build.files)) == (["build"], True, False, 1)
    assert plan.step_names == ("build", "run")
    for job, args, wall_ms in zip(plan.cases, ("a", "b"), (2000, 1500), strict=True):
        (step,) = job.start.steps
        assert (step.name, step.argv[-1], step.wall_ms, step.output, step.stdin) == ("run", args, wall_ms, 10, True)
        assert (job.start.keep, job.start.from_products, job.start.files, job.deadline_s) == (False, True, (), wall_ms / 1000 + 10)
    with pytest.raises(UnprocessableError, match=r"limits\.run\.wall_s is 11"):
        make_plan(msgspec.structs.replace(snippet, cases=(Case(limits={"wall_s": 11.0}),)), toy(), Config())
    alone = make_plan(Snippet(source=b"", cases=cases), Images().find("py"), Config())
    assert (alone.job.start.steps, alone.job.start.keep, alone.step_names) == ((), True, ("run",))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1.\u00b2"},
        {"version": "1\x1b[2J"},
        {"env": {"X": "y" * 70_000}},
        {"env": {"A=B": "x"}},
        {"env": {"A": "\0"}},
        {"env": {"A": "\ud800"}},
        {"memory": -1},
        {"steps": [{"name": "run", "argv": ["x" * 70_000]}]},
    ],
)
def test_a_bad_manifest_does_not_break_the_other_images(changes: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    (folder,) = (paths.data_dir() / "images" / "py").iterdir()
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert [image.manifest.language for image in Images().installed()] == ["real", "toy"]
    assert "left out" in caplog.text
    assert Images().find("toy").manifest.language == "toy"
    with pytest.raises(UnknownLanguageError):
        Images().find("py@1.0")


def image_with_profiles() -> InstalledImage:
    """An image whose language has tests and a formatter."""
    test = Profile(
        steps=(LanguageStep(name="build", argv=("cc", "{hidden}", "{args}")), LanguageStep(name="run", argv=("./t",))),
        source_file="test.toy",
        files={".mayfly/shim": "text"},
        tests="lines",
    )
    form = Profile(steps=(LanguageStep(name="run", argv=("fmt", "{hidden}")),), collect=("*.toy",))
    image = toy()
    return image._replace(manifest=msgspec.structs.replace(image.manifest, profiles={"test": test, "format": form}))


def test_a_step_is_told_how_much_longer_everything_takes() -> None:
    image = toy()
    slow = LanguageStep(name="run", argv=("sleep", "{time_factor}"))
    image = image._replace(manifest=msgspec.structs.replace(image.manifest, steps=(slow,)))
    for factor, word in ((0.0, "1"), (1.0, "1"), (2.5, "2.5"), (20.0, "20")):
        plan = make_plan(Snippet(source=b"s"), image, Config(time_factor=factor))
        assert plan.job.start.steps[0].argv == ("sleep", word)


def test_what_stands_by_is_started_as_its_step_would_be() -> None:
    steps = (
        LanguageStep(name="build", argv=("cc", "{mode}"), env={"A": "B"}, standby=("ccd", "{mode}"), wall_s=7),
        LanguageStep(name="run", argv=("./a.out",), stdin=True),
    )
    install("warm", ".w", steps, options={"mode": Option(values=("x", "y"), default="y")})
    image = Images().find("warm")
    job = make_standby(image, Config())
    assert job is not None
    (standby,) = job.start.steps
    (build, run) = make_plan(Snippet(source=b""), image, Config()).job.start.steps
    assert (standby.name, standby.argv, standby.standby, standby.by_standby) == ("build", ("ccd", "y"), True, False)
    assert (standby.cwd, standby.env, standby.stdin) == (build.cwd, build.env, build.stdin)
    assert ((build.by_standby, build.standby), (run.by_standby, run.standby)) == ((True, False), (False, False))
    assert make_standby(toy(), Config()) is None


def test_a_request_that_its_program_could_not_have_met_is_not_for_what_stands_by() -> None:
    build, run = LanguageStep(name="build", argv=("cc",)), LanguageStep(name="run", argv=("vm",), stdin=True)
    install("build", ".b", (msgspec.structs.replace(build, standby=("ccd",)), run))
    install("run", ".r", (build, msgspec.structs.replace(run, standby=("vm", "standby"))))
    source, images = b"", Images()
    for snippet, used in [
        (Snippet(source=source), (True, True)),
        (Snippet(source=source, args=("a",), limits={"run": {"wall_s": 1}}), (True, True)),
        (Snippet(source=source, build_env={"A": "B"}), (False, True)),
        (Snippet(source=source, env={"A": "B"}), (True, False)),
        (Snippet(source=source, tty=Terminal(columns=80, rows=24), interactive=True), (True, False)),
    ]:
        plans = [make_plan(snippet, images.find(name), Config()).job.start.steps for name in ("build", "run")]
        assert (plans[0][0].by_standby, plans[1][1].by_standby) == used, snippet
        assert not plans[0][1].by_standby and not plans[1][0].by_standby


def test_a_profile_has_steps_and_files_of_its_own() -> None:
    snippet = Snippet(source=b"s", hidden_files={"a.toy": b"a", "b": b"b"}, profile="test", args=("x",))
    plan = make_plan(snippet, image_with_profiles(), Config())
    assert (plan.step_names, plan.tests, plan.collect) == (("build", "run"), "lines", ())
    assert plan.job.start.steps[0].argv == ("cc", "a.toy", "b", "x")
    files = {entry.path: data for entry, data in zip(plan.job.start.files, plan.job.files, strict=True)}
    assert files == {"test.toy": b"s", "a.toy": b"a", "b": b"b", ".mayfly/shim": b"text"}
    plan = make_plan(Snippet(source=b"s", profile="format", collect=("x",)), image_with_profiles(), Config())
    assert (plan.step_names, plan.tests, plan.collect) == (("run",), "", ("x", "*.toy"))
    assert plan.job.start.steps[0].argv == ("fmt",)
    assert make_plan(Snippet(source=b"s", hidden_files={"h": b""}), image_with_profiles(), Config()).step_names == ("build", "run")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"profile": "lint"}, "toy has no profile 'lint'"),
        ({"profile": "test", "files": {".mayfly/shim": b""}}, "taken by what runs the tests"),
        ({"profile": "test", "files": {"test.toy": b""}}, "both hold 'test.toy'"),
        ({"profile": "test", "files": {"a": b""}, "hidden_files": {"a": b""}}, "both hold 'a'"),
        ({"profile": "test", "hidden_files": {"../a": b""}}, "is not allowed"),
        ({"profile": "test", "cases": (Case(),)}, "takes no cases"),
    ],
)
def test_a_profile_that_does_not_fit(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        make_plan(Snippet(source=b"s", **fields), image_with_profiles(), Config())
    assert words in str(caught.value)
