"""Snapshots of Linux guests: restored from, different from each other, right about time, warm in
the pool, and safe against kill -9.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.protocol.pages import unpack_runs
from mayfly.snapshots import store as snapshots
from mayfly.units import MIB, PAGE
from scripts.debian.local_registry import serving as registry
from tests.kit import toy
from tests.kit.machines import machines_of
from tests.kit.scale import FULL, scaled
from tests.system.test_service import DEADLINE_S, Server, children, command, connect, direct_children, read_all, wait_gone

pytestmark = [pytest.mark.system, pytest.mark.timeout(900), pytest.mark.usefixtures("toy_language")]

TOLERANCE_S = {"x86_64": 0.05, "aarch64": 0.5}[toy.MACHINE]
"""Of clocks. An emulated Arm host takes a tenth of a second for the least answer of a guest."""
INSTALLED = paths.data_dir()
"""With the images that were installed before the tests."""
IDENTITY = """
head -c 16 /dev/urandom | sha256sum
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /proc/sys/kernel/hostname
"""


def mayfly(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def base() -> str:
    """The toy language's base."""
    mayfly("snapshot", "create", "toy")
    return "toy"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for sockets, whose path is short enough for one."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        yield Path(name)


def ran(server: Server, source: str, start: str = "restored") -> str:
    status, result = server.request("POST", "/run?language=toy", source.encode())
    assert (status, result["status"], result["start"]) == (200, "ok", start), result
    return str(result["steps"][-1]["stdout"])


@pytest.fixture
def no_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder with the kernel and images of the others', and nothing else."""
    others = paths.data_dir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    paths.data_dir().mkdir(parents=True)
    for part in ("kernel", "images"):
        (paths.data_dir() / part).symlink_to(others / part)


@pytest.mark.usefixtures("no_snapshots")
def test_run_makes_the_base_once_and_starts_from_it(tmp_path: Path) -> None:
    snippet = tmp_path / "hello.toy"
    snippet.write_text("echo hello; cat")
    first, second = (mayfly("run", snippet) for _ in range(2))
    assert (first.stdout, second.stdout) == ("hello\n", "hello\n")
    assert "making a snapshot" in first.stderr
    assert second.stderr == ""
    kinds = {option: json.loads(mayfly("run", "--json", *option, snippet).stdout) for option in ((), ("--cold",))}
    assert {option: result["start"] for option, result in kinds.items()} == {(): "restored", ("--cold",): "cold"}
    restored, cold = (result["exits"]["total"] for result in kinds.values())
    assert restored < cold


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="docker-registry is missing: scripts/setup")
@pytest.mark.usefixtures("no_snapshots")
def test_pulled_snapshots_are_restored(tmp_path: Path) -> None:
    """A diff without its parent, which is no more here; then the base alone. The numbers of their
    processes tell them apart.
    """
    snippet, forks = tmp_path / "number.toy", tmp_path / "forks.toy"
    snippet.write_text("echo $$")
    forks.write_text("i=0; while [ $i -lt 300 ]; do (:); i=$((i+1)); done")

    def number(*options: str) -> int:
        done = mayfly("run", "--json", *options, snippet)
        result = json.loads(done.stdout)
        assert (result["start"], "making a snapshot" in done.stderr) == ("restored", False)
        return int(result["steps"][-1]["stdout"])

    mayfly("snapshot", "create", "toy")
    mayfly("snapshot", "create", "toy", forks, "--name", "ours", "--parent", "toy")
    with registry() as address:
        for name in ("ours", "toy"):
            mayfly("snapshot", "push", name, f"{address}/bases/{name}:1")
        mayfly("snapshot", "rm", "ours", "toy")
        mayfly("snapshot", "pull", f"{address}/bases/ours:1")
        assert (snapshots.find("ours").manifest.parent, len(list(snapshots.installed()))) == ("", 1)
        of_diff = number("--snapshot", "ours")
        mayfly("snapshot", "pull", f"{address}/bases/toy:1")
    assert of_diff > number() + 200


def test_every_clone_is_another_machine(base: str, folder: Path) -> None:
    """What programs draw and see is different in each of many clones of one snapshot."""
    server = Server(folder, cold=False)
    clones = [ran(server, IDENTITY).split() for _ in range(scaled(300))]
    server.close()
    for values in zip(*clones, strict=True):
        assert len(set(values)) == (1 if set(values) == {"-"} else len(clones)), values


RUST_IDENTITY = """
use std::hash::{BuildHasher, Hasher};
use std::io::Read;
fn main() {
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    println!("{hash:x} {bytes:x?} {:p}", &bytes);
}
"""


GO_IDENTITY = """
package main
import ("crypto/rand"; "fmt"; "io"; "os")
func main() {
    if len(os.Args) > 1 {
        program, _ := os.Open("/proc/self/exe")
        io.Copy(os.Stdout, program)
        return
    }
    bytes := make([]byte, 16)
    rand.Read(bytes)
    fmt.Printf("%x\\n", bytes)
}
"""


def rust_program(folder: Path) -> bytes:
    """Prints what the standard library hashes with, compiled on this host."""
    if not shutil.which("rustc"):
        pytest.skip("there is no Rust compiler, as in an emulated Arm host")
    source, program = folder / "identity.rs", folder / "identity"
    source.write_text(RUST_IDENTITY)
    subprocess.run(["rustc", "-C", "target-feature=+crt-static", "-o", program, source], check=True)
    return program.read_bytes()


def go_program(folder: Path) -> bytes:
    """Prints what crypto/rand gives; it was compiled in a machine and wrote itself to its
    output.
    """
    if not (INSTALLED / "images/go" / toy.MACHINE).is_dir():
        pytest.skip("there is no image of Go: make test-images")
    source = folder / "identity.go"
    source.write_text(GO_IDENTITY)
    arguments = command("run", "--output-limit", "16M", source, "--", "itself")
    environment = {**os.environ, "XDG_DATA_HOME": str(INSTALLED.parent)}
    return subprocess.run(arguments, capture_output=True, check=True, stdin=subprocess.DEVNULL, env=environment).stdout


@pytest.mark.skipif(not FULL, reason="compiles programs in the emulated host; the whole counts do")
@pytest.mark.parametrize("program", [rust_program, go_program])
def test_a_program_draws_other_numbers_in_each_clone(program: Callable[[Path], bytes], tmp_path: Path, folder: Path) -> None:
    image = toy.build("drawing", programs={"identity": program(tmp_path)})
    mayfly("snapshot", "create", "drawing")
    server = Server(folder, cold=False)
    drawn = []
    for _ in range(scaled(300)):
        status, result = server.request("POST", "/run?language=drawing", b"identity")
        assert (status, result["start"]) == (200, "restored")
        drawn.append(result["steps"][-1]["stdout"].split()[0])
    server.close()
    shutil.rmtree(image.parent)  # the next tests' snippets are toy's
    assert len(set(drawn)) == len(drawn)


NODE_IDENTITY = """
const crypto = require('crypto');
console.log(Math.random(), Math.random(), crypto.randomInt(2 ** 47), crypto.randomUUID(), crypto.randomBytes(8).toString('hex'));
"""


@pytest.mark.skipif(not FULL, reason="makes a base of Node; the whole counts do")
def test_node_that_stood_by_draws_other_numbers_in_each_clone(tmp_path: Path) -> None:
    """OpenSSL's generator too, which was used before the base was made."""
    if not (INSTALLED / "images/javascript" / toy.MACHINE).is_dir():
        pytest.skip("there is no image of JavaScript: make test-images")
    source = tmp_path / "identity.js"
    source.write_text(NODE_IDENTITY)
    environment = {**os.environ, "XDG_DATA_HOME": str(INSTALLED.parent)}
    runs = [
        subprocess.run(command("run", source), capture_output=True, check=True, stdin=subprocess.DEVNULL, env=environment) for _ in range(4)
    ]
    for values in zip(*(run.stdout.split() for run in runs), strict=True):
        assert len(set(values)) == len(runs), values


def test_the_time_of_day_is_the_hosts(base: str, tmp_path: Path) -> None:
    """The guest says the time between a question and its answer; the median of several restored
    machines, each alone.
    """
    snippet = tmp_path / "clock.toy"
    snippet.write_text("echo ready; while read line; do echo $EPOCHREALTIME; done")
    errors = []
    for _ in range(5):
        with subprocess.Popen(command("run", snippet), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            answers = []
            for _ in range(10):
                asked = time.time()
                process.stdin.write("?\n")
                said = float(process.stdout.readline())
                heard = time.time()
                answers.append((heard - asked, said - (asked + heard) / 2))
            process.stdin.close()
            errors.append(min(answers)[1])  # of the quickest answer, which says it best
    print(f"guest clocks ahead of the host's, in seconds: {sorted(errors)}")
    assert abs(sorted(errors)[len(errors) // 2]) < TOLERANCE_S


def test_the_time_since_the_boot_goes_on_and_never_back(base: str, folder: Path) -> None:
    server = Server(folder, cold=False)
    uptimes = [float(ran(server, "cat /proc/uptime").split()[0]) for _ in range(5)]
    server.close()
    snippet = folder / "diff.toy"
    snippet.write_text("cat /proc/uptime")
    mayfly("snapshot", "create", "toy", snippet, "--name", "later", "--parent", base)
    later = float(mayfly("run", "--snapshot", "later", snippet).stdout.split()[0])
    mayfly("snapshot", "rm", "later")
    assert max(uptimes) < 60  # the base's, and the run's own; not the time between
    assert later > min(uptimes)


def test_free_memory_of_a_base_is_zeros_in_one_piece() -> None:
    """What the warm-up left in memory is no part of it, and a host can give huge pages where a
    guest uses it again.
    """
    toy.build("dirty", memory=160 * MIB, warmup="yes | head -c 64000000 > /tmp/file; : > /tmp/file")
    mayfly("snapshot", "create", "dirty")
    runs = unpack_runs((paths.snapshots_dir() / "dirty/pages").read_bytes(), 160 * MIB)
    holes = [(after - first - count) * PAGE for (first, count), (after, _) in itertools.pairwise([*runs, (160 * MIB // PAGE, 0)])]
    shutil.rmtree(paths.image_dir("dirty", toy.MACHINE).parent)
    mayfly("snapshot", "rm", "dirty")
    assert sum(count for _, count in runs) * PAGE < 64 * MIB
    assert max(holes) > 32 * MIB


def test_a_diff_keeps_what_ran_before_it(base: str, tmp_path: Path) -> None:
    """A diff of a diff of the base holds little, and each run from it starts with what both left
    behind.
    """
    steps = (("one", base, "echo 1 >/dev/shm/one || echo 1 >/tmp/one"), ("two", "one", "echo 2 >/dev/shm/two || echo 2 >/tmp/two"))
    for name, parent, source in steps:
        snippet = tmp_path / f"{name}.toy"
        snippet.write_text(source)
        mayfly("snapshot", "create", "toy", snippet, "--name", name, "--parent", parent)
    listed = {item["name"]: item for item in json.loads(mayfly("snapshot", "list", "--json").stdout)}
    assert listed["two"]["chain"] == [base, "one", "two"]
    assert 0 < listed["two"]["memory_bytes"] < listed[base]["memory_bytes"] / 2
    snippet = tmp_path / "main.toy"
    snippet.write_text("echo through the chain")
    done = json.loads(mayfly("run", "--snapshot", "two", "--json", snippet).stdout)
    assert (done["start"], done["steps"][-1]["stdout"]) == ("restored", "through the chain\n")
    for name in ("two", "one"):
        mayfly("snapshot", "rm", name)
    assert "no snapshot" in mayfly("run", "--snapshot", "two", snippet, status=125).stderr


@pytest.mark.aarch64
def test_two_processors_go_on(tmp_path: Path) -> None:
    snippet = tmp_path / "main.toy"
    snippet.write_text("(i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo a) & (echo b); wait; cat /proc/cpuinfo | head -c 0; echo $$")
    mayfly("snapshot", "create", "toy", "--cpus", "2")
    done = json.loads(mayfly("run", "--cpus", "2", "--json", snippet).stdout)
    assert (done["start"], done["status"]) == ("restored", "ok")
    mayfly("snapshot", "rm", "toy.2cpus")


def test_the_serial_channel_goes_on(tmp_path: Path) -> None:
    snippet = tmp_path / "main.toy"
    snippet.write_text("echo by wire")
    mayfly("snapshot", "create", "toy", "--channel", "serial")
    done = json.loads(mayfly("run", "--channel", "serial", "--json", snippet).stdout)
    assert (done["start"], done["steps"][-1]["stdout"]) == ("restored", "by wire\n")
    mayfly("snapshot", "rm", "toy.serial")


def test_warm_machines_wait_for_runs(base: str, folder: Path) -> None:
    server = Server(folder, "--warm", "2", "--language", "toy", cold=False)
    (zygote,) = direct_children(server.process.pid)
    until(lambda: len(machines_of(zygote)) == 2)
    until(lambda: server.request("GET", "/healthz")[1]["idle"] == 2)
    assert ran(server, "echo warm", "warm") == "warm\n"
    text = metrics(server)
    assert 'mayfly_starts_total{kind="warm",language="toy"} 1.0' in text
    assert 'mayfly_phase_seconds_count{phase="start"} 1.0' in text
    family = children(server.process.pid)
    server.close()
    assert wait_gone(family)


def test_a_machine_under_way_is_saved_and_goes_on(base: str, folder: Path) -> None:
    """By the command, between two lines of a run's output, which is complete."""
    server = Server(folder, cold=False)
    run, output = server.start("echo before; sleep 30; echo after")
    with connect(output) as reader:
        assert reader.recv(7, socket.MSG_WAITALL) == b"before\n"
        mayfly("snapshot", "create", "under-way", "--from", run, "--socket", server.socket)
        assert server.request("GET", f"/runs/{run}")[1]["state"] == "running"
        assert read_all(reader) == b"after\n"
    result = server.request("GET", f"/runs/{run}")[1]
    server.close()
    saved = snapshots.find("under-way")
    assert (result["status"], result["steps"][-1]["stdout"]) == ("ok", "before\nafter\n")
    assert (saved.manifest.parent, saved.manifest.run) == (base, run)
    assert snapshots.digests(saved.folder) == dict(saved.manifest.files)
    mayfly("snapshot", "rm", "under-way")


STANDS_BY = """
stood=yes
ballast=$(busybox head -c 4000000 /dev/zero | busybox tr '\\0' x)
printf r >&3
set -- $(busybox tr '\\0' '\\n' <&3)
exec 3<&-
shift 2
cd /work
. ./main.toy
"""
ASKS = """
read line
echo "stood by: ${stood:-no}, said $line, given $*, files $(echo *)"
exec 2>/dev/null
group=/sys/fs/cgroup$(busybox cut -d: -f3 /proc/self/cgroup)
echo "$(ulimit -f) $(ulimit -t) $(cat $group/memory.max) $(cat $group/pids.max) $(busybox wc -l <$group/cgroup.procs)"
"""


def test_what_stands_by_is_the_next_runs_program(folder: Path) -> None:
    """In a restored machine, once; it meets what a program meets that is started for the run."""
    image = toy.build("standing", standby=STANDS_BY)
    mayfly("snapshot", "create", "standing")
    server = Server(folder, cold=False)

    def asked(**more: Any) -> list[str]:
        body = {"language": "standing", "source": ASKS, "stdin": "something\n", "args": ["a", "b"], **more}
        status, result = server.request("POST", "/run", json.dumps(body).encode(), "application/json")
        assert (status, result["status"]) == (200, "ok"), result
        return str(result["steps"][-1]["stdout"]).splitlines()

    limits = {"run": {"cpu_s": 7, "processes": 17}}
    used, usual = asked(limits=limits), asked(limits=limits, env={"A": "B"})
    assert used[0] == "stood by: yes, said something, given a b, files main.toy"
    assert usual[0] == used[0].replace("yes", "no")
    assert used[1].split()[2:4] == usual[1].split()[2:4]
    assert used[1].split()[3] == "17"
    assert used[1].split()[0] == usual[1].split()[0]
    assert int(usual[1].split()[1]) <= int(used[1].split()[1]) < int(usual[1].split()[1]) + 60
    assert asked(limits={"run": {"memory": 40 * MIB}})[0] == usual[0], "a program may choose by its limit how much it uses"
    loops = {"language": "standing", "source": "while :; do :; done", "limits": {"run": {"cpu_s": 1}}}
    _, result = server.request("POST", "/run", json.dumps(loops).encode(), "application/json")
    assert (result["status"], result["steps"][-1]["limit"]) == ("limit", "cpu"), result
    large = {"language": "standing", "source": "x=x; while :; do x=$x$x; done"}
    _, result = server.request("POST", "/run", json.dumps(large).encode(), "application/json")
    assert (result["status"], result["steps"][-1]["limit"]) == ("limit", "memory"), result
    server.close()
    shutil.rmtree(image.parent)  # the next tests' snippets are toy's


def test_cases_run_in_one_guest_and_in_copies_of_it(base: str, folder: Path) -> None:
    """The same verdicts, and no program sees what another left. Files come back from such a guest
    too.
    """
    source = """
read name
echo $name $(ls -A . /tmp /var/tmp /dev/shm) sleepers $(busybox pidof sleep | busybox wc -w)
touch /tmp/left /var/tmp/left /dev/shm/left left; echo broken > main.toy
sleep 1000 &
case $name in case-3) exit 1;; esac
"""
    found = ".: main.toy /dev/shm: /tmp: /var/tmp: sleepers 0"
    cases = [{"stdin": f"case-{number}", "expected_stdout": f"case-{number} {found}", "compare": "tokens"} for number in range(12)]
    server = Server(folder, cold=False)
    results = []
    for parallel in (1, 3):
        body = {"language": "toy", "source": source, "cases": cases, "parallel": parallel}
        status, result = server.request("POST", "/run", json.dumps(body).encode(), "application/json")
        assert (status, result["start"], result["cases"]["parallel"]) == (200, "restored", parallel), result
        print(f"12 cases on {parallel} guests: {result['phases']}")
        results.append([(row["index"], row["verdict"], row["stdout"]) for row in result["cases"]["results"]])
    assert [verdict for _, verdict, _ in results[0]] == ["passed"] * 3 + ["failed"] + ["passed"] * 8, results[0]
    assert results[0] == results[1]
    collecting = {"language": "toy", "source": "mkdir out; echo a > out/a; touch b", "collect": ["out/*"]}
    _, result = server.request("POST", "/run", json.dumps(collecting).encode(), "application/json")
    assert result["files"] == {"out/a": {"base64": "YQo="}}
    family = children(server.process.pid)
    server.close()
    assert wait_gone(family)
    assert not [path for path in paths.snapshots_dir().iterdir() if "passing" in path.name]


def metrics(server: Server) -> str:
    command = ["curl", "-sS", "--unix-socket", str(server.socket), "http://localhost/metrics"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def own_memory(folder: Path, language: str, count: int) -> list[int]:
    """Private_Dirty in KiB of each of `count` idle machines and their zygote: guest pages that it
    changed, and its process.
    """
    server = Server(folder, "--warm", str(count), "--language", language, "--memory-budget", "1000G", cold=False)
    until(lambda: server.request("GET", "/healthz")[1]["idle"] == count)
    sizes = []
    (zygote,) = direct_children(server.process.pid)
    for pid in (zygote, *machines_of(zygote)):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes.append(int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty"))))
    server.close()
    print(f"Private_Dirty of {len(sizes)} processes: median {sorted(sizes)[len(sizes) // 2]} KiB, most {max(sizes)} KiB")
    return sizes


def test_idle_clones_share_the_base(base: str, folder: Path) -> None:
    """Many idle clones at once, none of them failing, and what each has of its own."""
    sizes = own_memory(folder, "toy", scaled(100))
    assert len(sizes) == scaled(100) + 1
    assert max(sizes) < 24 * 1024


def test_kill_9_at_any_moment_leaves_nothing(base: str, folder: Path) -> None:
    """Of who makes a snapshot, or runs from one, or of its vmm process: what is listed is whole,
    nothing is left, the next start works.
    """
    snippet = folder / "main.toy"
    snippet.write_text("echo fine")
    chance = random.Random(os.getpid())
    for turn in range(scaled(200)):
        arguments, longest_s = (("snapshot", "create", "toy"), 6.0) if turn % 2 else (("run", snippet), 3.0)
        started = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.2, longest_s))
        family = children(started.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice([started.pid, *family]), signal.SIGKILL)
        started.wait(DEADLINE_S)
        assert wait_gone(family)
        for found in snapshots.installed():
            assert isinstance(found, snapshots.Snapshot), found
            assert snapshots.digests(found.folder) == dict(found.manifest.files)
    mayfly("snapshot", "create", "toy")
    assert not list(paths.snapshots_dir().glob(".*.part"))
    assert mayfly("run", snippet).stdout == "fine\n"


def test_an_altered_snapshot_is_refused_and_made_again(base: str, tmp_path: Path) -> None:
    snippet = tmp_path / "main.toy"
    snippet.write_text("echo fine")
    memory = paths.snapshots_dir() / base / "memory"
    with memory.open("r+b") as file:
        file.seek(int.from_bytes((paths.snapshots_dir() / base / "pages").read_bytes()[:8], "little") * 4096)
        file.write(b"altered")
    done = mayfly("run", snippet)
    assert (done.stdout, "altered" in done.stderr, "making a snapshot" in done.stderr) == ("fine\n", True, True)
    assert json.loads(mayfly("run", "--json", snippet).stdout)["start"] == "restored"
