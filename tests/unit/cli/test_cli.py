"""`mayfly` as a user meets it: what goes in and out, exit statuses, signals, messages; machines are
ordinary processes.
"""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import HostError
from mayfly.guests.probe import KvmProbe
from mayfly.host import checks, keys
from mayfly.host.config import Config
from mayfly.snapshots import store as snapshots
from mayfly.vmm.config import NetworkBackend, Sandbox
from mayfly.vmm.sandbox.parts import Part
from tests.kit.api_fakes import ROOT, gone, install_toys

Mayfly = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def mayfly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mayfly:
    """Start the command in a folder of its own; `config.yaml` there says that no KVM is to be
    probed.
    """
    install_toys(monkeypatch, tmp_path)
    (tmp_path / "config" / "mayfly").mkdir(parents=True)
    (tmp_path / "config" / "mayfly" / "config.yaml").write_text("time_factor: 1\nmemory_budget: 536870912\ncold: true\n")

    def start(*args: str, fault: str = "-", **options: Any) -> "subprocess.Popen[bytes]":
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.kit.fake_mayfly", fault, *args]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=tmp_path, env=env, **pipes)

    return start


@pytest.fixture
def run(mayfly: Mayfly, tmp_path: Path) -> Callable[..., tuple[int, bytes, bytes]]:
    """Run a snippet of toy and give exit status, standard output and standard error."""

    def call(source: str, *args: str, stdin: bytes | None = None, fault: str = "-") -> tuple[int, bytes, bytes]:
        (tmp_path / "x.toy").write_text(source)
        process = mayfly("run", *(args or ("x.toy",)), fault=fault, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=60)
        return process.returncode, out, err

    return call


Run = Callable[..., tuple[int, bytes, bytes]]


def test_output_and_status_are_the_programs(run: Run) -> None:
    assert run("echo out; echo err >&2; printf '\\377'; exit 7") == (7, b"out\n\xff", b"err\n")


def test_stdin_and_arguments_pass_through(run: Run) -> None:
    assert run('cat; echo "$1"', "x.toy", "--", "--json", stdin=b"a\0b") == (0, b"a\0b--json\n", b"")


def test_much_stdin(run: Run) -> None:
    assert run("wc -c", stdin=b"x" * 500_000)[1].strip() == b"500000"


def test_a_program_that_does_not_read_its_stdin(run: Run) -> None:
    assert run("exit 4", stdin=b"x" * 500_000)[0] == 4


def test_cases_from_a_file_and_from_a_folder(run: Run, tmp_path: Path) -> None:
    source = 'read line; echo "$line"; case $line in fail) exit 3;; esac'
    cases = [{"stdin": "a", "expected_stdout": "a"}, {"name": "\x1b[1m", "stdin": "x", "expected_stdout": "y"}, {"stdin": "fail"}]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    status, out, err = run(source, "--cases", "cases.json", "x.toy")
    first, second, third, last = out.decode().splitlines()
    assert (status, err, last) == (1, b"", "1 of 3 cases passed")
    assert (first.startswith("passed "), first.endswith("MiB  case 1")) == (True, True)
    assert second.startswith("wrong answer") and second.endswith("\ufffd[1m: line 1 is 'x', not 'y'")
    assert third.startswith("failed") and third.endswith("case 3: exit code 3")
    folder = tmp_path / "cases"
    folder.mkdir()
    for name, text in (("1.in", "a"), ("1.out", "a\n"), ("2.in", "fail"), ("3.in", "b")):
        (folder / name).write_text(text)
    status, out, _ = run(source, "--cases", "cases", "--stop-at-first-failure", "--json", "x.toy")
    result = json.loads(out)
    assert [(row["name"], row["verdict"]) for row in result["cases"]["results"]] == [("1", "passed"), ("2", "failed"), ("3", "skipped")]
    assert (status, result["status"]) == (1, "failed")


@pytest.mark.parametrize(
    ("text", "words"), [("[", b"cases.json"), ('{"a": 1}', b"cases.json"), ("[]", b"has 0 cases"), ("[{}, 1]", b"[1]")]
)
def test_cases_that_cannot_be_read(run: Run, tmp_path: Path, text: str, words: bytes) -> None:
    (tmp_path / "cases.json").write_text(text)
    status, out, err = run("true", "--cases", "cases.json", "x.toy")
    assert (status, out) == (125, b"")
    assert words in err and b"hint:" in err


def test_files_that_a_program_left_are_written_to_a_folder(run: Run, tmp_path: Path) -> None:
    source = "mkdir -p out/deep; printf '\\377' > out/deep/a.bin; echo b > b.txt; chmod +x b.txt; echo c > c.log; exit 3"
    args = ("x.toy", "--collect", "out/**/*", "--collect", "*.txt", "--collect-to", "new/back")
    assert run(source, *args) == (3, b"", b"")
    found = {str(path.relative_to(tmp_path / "new/back")): path for path in (tmp_path / "new/back").rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == {"out/deep/a.bin": b"\xff", "b.txt": b"b\n"}
    assert [bool(found[name].stat().st_mode & 0o100) for name in ("b.txt", "out/deep/a.bin")] == [True, False]
    (tmp_path / "new/back/b.txt").write_text("older")
    assert run("echo newer > b.txt", *args) == (0, b"", b"")
    assert (tmp_path / "new/back/b.txt").read_text() == "newer\n"


def test_nothing_outside_of_the_folder_is_written(run: Run, tmp_path: Path) -> None:
    """Links and other names of files that the folder had before: what they lead to stays."""
    outside, folder = tmp_path / "outside", tmp_path / "back"
    outside.mkdir()
    folder.mkdir()
    for name in ("linked", "shared"):
        (outside / name).write_text("safe")
    (folder / "a").symlink_to(outside / "linked")
    (folder / "b").hardlink_to(outside / "shared")
    assert run("echo bad > a; echo bad > b", "x.toy", "--collect", "?", "--collect-to", "back") == (0, b"", b"")
    assert [(folder / name).read_text() for name in "ab"] == ["bad\n"] * 2
    assert [path.read_text() for path in sorted(outside.iterdir())] == ["safe", "safe"]
    (folder / "sub").symlink_to(outside)
    (folder / "d").mkdir()
    for source, where in (("mkdir sub; echo bad > sub/linked", b"back/sub/linked"), ("echo bad > d", b"back/d")):
        status, out, err = run(source, "x.toy", "--collect", "**/*", "--collect-to", "back")
        assert (status, out, where in err, b"cannot be written" in err) == (125, b"", True, True), err
    assert [path.read_text() for path in sorted(outside.iterdir())] == ["safe", "safe"]
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_files_that_cannot_be_given_back(run: Run, tmp_path: Path) -> None:
    asked = ("x.toy", "--collect", "*", "--collect-to", "back")
    status, _, err = run("touch x", *asked, fault="escape")
    assert (status, b"cannot be given back" in err, (tmp_path / "back").exists()) == (125, True, False)
    assert run("head -c 20 /dev/zero > x; exit 4", *asked, "--collect-bytes", "10")[0] == 4
    assert run("rm *", *asked) == (0, b"", b"mayfly: the program left no file that --collect asks for\n")
    assert run("true", "x.toy", "--collect", "../*", "--collect-to", "back")[0] == 125
    for args in (("--collect", "*"), ("--collect-to", "back")):
        assert b"go together" in run("true", "x.toy", *args)[2]
    status, out, _ = run("echo 1 > y", "x.toy", "--json", "--collect", "y")
    assert (status, json.loads(out)["files"]) == (0, {"y": {"base64": "MQo="}})


def test_a_failed_build(run: Run) -> None:
    status, out, err = run("if")
    assert (status, out) == (1, b"")
    assert b"yntax error" in err


def test_a_signal(run: Run) -> None:
    assert run("kill -SEGV $$")[0] == 128 + signal.SIGSEGV


def test_a_limit_is_named(run: Run) -> None:
    status, out, err = run("echo before; sleep 60", "x.toy", "--wall", "0.3")
    assert (status, out) == (124, b"before\n")
    assert b"step run: ended by its wall limit" in err


def test_cut_output_is_said(run: Run) -> None:
    status, out, err = run("head -c 5000 /dev/zero", "x.toy", "--output-limit", "1K")
    assert (status, len(out)) == (0, 1024)
    assert b"stdout was cut" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent.toy"], b"absent.toy: cannot be read"),
        (["x.toy", "--language", "cobol"], b"there are: py@1.0, real@1.0, toy@1.0"),
        (["x.toy", "--language", "toy@2"], b"no image for the language 'toy@2'"),
        (["x.toy", "--wall", "0"], b"run_wall_s is 0.0; it must be"),
        (["x.toy", "--memory", "lots"], b"is not a size"),
        (["x.toy", "--memory", "4G"], b"does not fit into the budget"),
        (["x.toy", "--no-such-flag"], b"no-such-flag"),
        (["x.unknown"], b"extensions known here: .py, .real, .toy"),
    ],
)
def test_errors_of_ours_are_125_with_a_hint(run: Run, args: list[str], words: bytes) -> None:
    status, out, err = run("true", *args)
    assert (status, out) == (125, b"")
    assert words in err


def test_a_network_is_given_only_where_there_is_a_back_end(run: Run) -> None:
    status, _, stderr = run("echo no", "x.toy", "--network")
    assert (status, b"network_backend" in stderr) == (125, True)
    assert run("echo yes", "x.toy", "--network", "--network-backend", "passt", "--network-nameservers", "9.9.9.9")[:2] == (0, b"yes\n")


def test_a_boot_that_fails_shows_the_console(run: Run) -> None:
    status, _, err = run("true", fault="still-born")
    assert status == 125
    assert b"before its agent said HELLO" in err
    assert b"| last words" in err


def test_json_and_verbose(run: Run) -> None:
    status, out, err = run("echo hello; exit 3", "x.toy", "--json", "--verbose")
    result = json.loads(out)
    assert (status, result["exit_status"], result["steps"][1]["stdout"]) == (3, 3, "hello\n")
    assert b"boot" in err
    assert b"exits io" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_machine(mayfly: Mayfly, tmp_path: Path, number: int, status: int) -> None:
    (tmp_path / "x.toy").write_text("echo $$; exec sleep 60")
    with mayfly("run", "x.toy") as process:
        assert process.stdout
        inner = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(60) == status
    assert gone(inner)


def test_closed_standard_descriptors(mayfly: Mayfly, tmp_path: Path) -> None:
    (tmp_path / "x.toy").write_text("cat; echo out; exit 5")
    command = f"exec {sys.executable} -m tests.kit.fake_mayfly - run x.toy <&- >&-"
    process = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60
    )
    assert (process.returncode, process.stdout, process.stderr) == (5, b"", b"")


def test_a_reader_that_goes_away(mayfly: Mayfly, tmp_path: Path) -> None:
    (tmp_path / "x.toy").write_text("yes")
    with mayfly("run", "x.toy", "--output-limit", "32M") as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_output_arrives_while_the_program_runs_and_stdin_is_live(mayfly: Mayfly, tmp_path: Path) -> None:
    (tmp_path / "x.toy").write_text("while read line; do echo got $line; done; echo end")
    with mayfly("run", "x.toy", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"got " + word + b"\n"
        process.stdin.close()
        assert process.stdout.read() == b"end\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(mayfly: Mayfly, shell: str) -> None:
    out, _ = mayfly("completion", shell).communicate(timeout=60)
    assert b"_MAYFLY_COMPLETE" in out


def test_doctor(mayfly: Mayfly, tmp_path: Path) -> None:
    process = mayfly("doctor", "--json", "--kernel", str(tmp_path / "absent"))
    out, _ = process.communicate(timeout=60)
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert process.returncode == 1
    assert not checks["kernel"]["ok"]
    assert checks["kernel"]["fix"] == "mayfly kernel build"
    assert checks["images"]["finding"] == "py 1.0, real 1.0, toy 1.0"
    out, _ = mayfly("doctor", "--kernel", str(tmp_path / "absent")).communicate(timeout=60)
    assert b"-> mayfly kernel build" in out


def look(name: str, **values: Any) -> list[tuple[bool, str]]:
    """What the doctor finds where it looks at `name`."""
    probing = lambda: KvmProbe(usable=True, reason="", hint="", emulated=False)  # noqa: E731
    return [(found.ok, found.finding) for found in checks.examine(Config(**values), probing) if found.name == name]


def test_doctor_looks_for_what_clients_over_tcp_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert look("listen") == []
    assert look("listen", listen=("127.0.0.1:80", "[::1]:80")) == [(False, "127.0.0.1:80, [::1]:80; 0 API keys")]
    keys.create(keys.default_path(), "site")
    assert look("listen", listen=("127.0.0.1:80",)) == [(True, "127.0.0.1:80; 1 API keys")]
    assert look("listen", listen=("80",)) == [(False, "listen: '80' is not an address")]
    lost = {"tls_certificate": "/nowhere.crt", "tls_key": "/nowhere.key"}
    assert look("listen", listen=("0.0.0.0:80",), **lost) == [(False, "/nowhere.crt cannot be read")]
    keys.default_path().write_text("{")
    assert [ok for ok, _ in look("listen", listen=("127.0.0.1:80",))] == [False]


def test_doctor_shows_each_part_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lacking matters only where it is required."""
    found = [Part("namespaces", "net", "user: Operation not permitted"), Part("landlock", "paths (ABI 1)"), Part("seccomp", "two filters")]
    monkeypatch.setattr("mayfly.vmm.sandbox.parts.look", lambda: found)
    assert look("namespaces") == [(True, "net; this host refuses user: Operation not permitted")]
    assert look("namespaces", sandbox=Sandbox.REQUIRED) == [(False, "net; this host refuses user: Operation not permitted")]
    assert look("landlock", sandbox=Sandbox.REQUIRED) == [(True, "paths (ABI 1)")]
    assert look("sandbox", sandbox=Sandbox.OFF) == [(True, "off: a machine gives up its user's privileges alone")]
    assert look("seccomp", sandbox=Sandbox.OFF) == []


def test_a_server_requires_what_its_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or names what is lacking."""
    whole = [Part("landlock", "paths (ABI 1)"), Part("seccomp", "two filters")]
    monkeypatch.setattr("mayfly.vmm.sandbox.parts.look", lambda: whole)
    assert checks.sandbox(Config()) == (Sandbox.REQUIRED, "landlock: paths (ABI 1); seccomp: two filters")
    assert checks.sandbox(Config(sandbox=Sandbox.BEST_EFFORT))[0] is Sandbox.BEST_EFFORT
    assert checks.sandbox(Config(sandbox=Sandbox.OFF)) == (Sandbox.OFF, "off")
    whole[0] = Part("landlock", "none", "Function not implemented")
    level, text = checks.sandbox(Config())
    assert level is Sandbox.BEST_EFFORT
    assert "this host lacks landlock (Function not implemented)" in text
    assert checks.sandbox(Config(sandbox=Sandbox.REQUIRED))[0] is Sandbox.REQUIRED


@pytest.mark.skipif(os.geteuid() != 0, reason="only machines of root have ids of their own")
def test_doctor_sees_a_range_of_ids_that_is_too_small() -> None:
    assert [ok for ok, _ in look("user")] == [True]
    assert [ok for ok, _ in look("user", uid_range="100000-100999")] == [False]


def test_doctor_looks_for_what_the_network_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    check = functools.partial(look, "network")
    assert check() == []
    assert check(network_backend=NetworkBackend.TAP, network_taps=("lo", "nope0")) == [(False, "no interface nope0")]
    assert check(network_backend=NetworkBackend.TAP, network_taps=("lo",)) == [(True, "1 tap interfaces")]
    monkeypatch.setenv("PATH", "/nonexistent")
    assert check(network_backend=NetworkBackend.PASST) == [(False, "passt is not installed")]


@pytest.mark.parametrize(
    "limit",
    [
        ("--rate", "0"),
        ("--rate", "5/s"),
        ("--concurrency", "0"),
        ("--memory", "0"),
        ("--memory", "4096"),
        ("--memory", "x"),
        ("--readers", "0"),
    ],
)
def test_limits_of_keys_that_allow_nothing_are_refused(mayfly: Mayfly, tmp_path: Path, limit: tuple[str, str]) -> None:
    process = mayfly("key", "create", "site", *limit)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert limit[0].encode() in error
    assert keys.load(keys.default_path()) == ()


def test_help_imports_little() -> None:
    code = "import sys, mayfly.cli.main; mayfly.cli.main.cli.main(['run', '--help'], standalone_mode=False)\n"
    code += "print([name for name in ('aiohttp', 'asyncio', 'yaml', 'mayfly.vmm.kvm') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")


def test_running_does_not_import_what_takes_long() -> None:
    code = "import sys, mayfly.cli.run, mayfly.host.checks, mayfly.runs.service; print({'aiohttp', 'tarfile'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_time_factor_is_the_hosts() -> None:
    def probing(usable: bool, emulated: bool) -> Callable[[], KvmProbe]:
        return lambda: KvmProbe(usable=usable, reason="because", hint="do this", emulated=emulated)

    assert checks.time_factor(Config(), probing(True, False)) == 1
    assert checks.time_factor(Config(), probing(True, True)) == 5
    assert checks.time_factor(Config(time_factor=2.5), probing(False, False)) == 2.5
    with pytest.raises(HostError) as caught:
        checks.time_factor(Config(), probing(False, True))
    assert (caught.value.message, caught.value.hint) == ("no machine can run here: because", "do this")


@pytest.fixture
def warm(mayfly: Mayfly, tmp_path: Path) -> Mayfly:
    """As `mayfly`, where runs start from snapshots."""
    config = f"time_factor: 1\nmemory_budget: 536870912\nkernel: {tmp_path}/vmlinux\n"
    (tmp_path / "config" / "mayfly" / "config.yaml").write_text(config)
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    (tmp_path / "x.toy").write_text("echo hi; exit 3")
    return mayfly


def test_the_first_run_boots_and_makes_a_snapshot_for_the_next(warm: Mayfly) -> None:
    first, second, third = (warm("run", *args, "x.toy").communicate(timeout=60) for args in ((), (), ("--json",)))
    assert (first[0], b"making a snapshot of toy 1.0" in first[1]) == (b"hi\n", True)
    assert second == (b"hi\n", b"")
    assert json.loads(third[0])["start"] == "restored"


def test_a_run_whose_snapshot_cannot_be_made_has_its_own_exit_status(warm: Mayfly) -> None:
    process = warm("run", "x.toy", fault="disk-full")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, b"hi\n")
    assert b"No space" in err


def test_ctrl_c_skips_the_snapshot(warm: Mayfly) -> None:
    with snapshots.claimed("toy"):  # who makes one waits
        process = warm("run", "x.toy")
        assert process.stdout is not None
        assert process.stdout.readline() == b"hi\n"
        assert process.stderr is not None
        assert b"making a snapshot" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 3
    assert not list(snapshots.installed())
