"""One emulated Intel host: which processor, which tests, and what its console says of them."""

import dataclasses
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from scripts.intel_check import image
from scripts.kvmhost.hostfiles import cpio
from tests.kit import processor_time

HERE = Path(__file__).resolve().parent
MEMORY_MIB = 2048
"""Bochs' most."""
IPS = 400_000_000
"""Instructions in one of the emulated host's seconds: so many that time limits, which count these
seconds, are not met by slowness. Bochs does 50 to 100 million in one of ours.
"""
KERNEL_WORDS = (
    *("console=ttyS0,115200", "quiet", "loglevel=4", "panic=-1", "nokaslr", "norandmaps", "mitigations=off", "audit=0"),
    *("random.trust_cpu=on", "cgroup_no_v1=all"),
    # The models' CPUID names a real processor's clock, but Bochs' counter runs at IPS.
    f"tsc_early_khz={IPS // 1000}",
)
BOCHSRC = f"""
config_interface: textconfig
display_library: nogui
cpu: model={{model}}, count=1, ips={IPS}, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={MEMORY_MIB}, host={MEMORY_MIB}, block_size={image.BLOCK >> 10}
romimage: file={{files}}/bios, options=fastboot
vgaromimage: file={{files}}/vga
optromimage1: file=boot.rom, address={image.ROM:#x}
optramimage1: file=setup.img, address={image.SETUP:#x}
optramimage2: file=image.img, address={image.IMAGE:#x}
pci: enabled=1, chipset=i440fx
clock: sync=none, time0=utc
com1: enabled=1, mode=file, dev=serial.txt
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"""
PYTEST = ("python3", "-m", "pytest", "-v", "--color=no", "-p", "no:hypothesispytest", "-p", "no:cacheprovider", "--tb=short")
OUTCOME = re.compile(r"^(tests/\S+?\.py)::(.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
SAID = re.compile(r"^== (processor|flags|parameters|status): *(.*)$", re.MULTILINE)
POLL_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """A processor and what runs on it.

    Attributes:
        name: for people.
        model: Bochs' name of the processor.
        parameters: kvm_intel's, separated by commas.
        tests: pytest's words that choose the tests.
        left_out: what they leave out, for people.
    """

    name: str
    model: str
    parameters: str = ""
    tests: tuple[str, ...]
    left_out: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a host's console said.

    Attributes:
        files: outcomes (passed, failed, error, skipped) of each file's tests.
        failed: the tests that failed or had an error.
        said: `processor`, `flags` and `parameters` of the host, and pytest's `status`.
        seconds: of this machine's time.
        processor_s: of its processors' time, which says more on a machine with other work.
        console: all of it.
    """

    files: dict[str, Counter[str]]
    failed: tuple[str, ...]
    said: dict[str, str]
    seconds: float
    processor_s: float
    console: str

    @property
    def passed(self) -> bool:
        """Whether pytest came to its end and all was well."""
        return self.said.get("status") == "0"


def parse(console: str, seconds: float = 0.0, processor_s: float = 0.0) -> Result:
    """Read what pytest -v and init.sh have printed."""
    console = console.replace("\r", "")
    files: dict[str, Counter[str]] = {}
    failed = []
    for file, name, outcome in OUTCOME.findall(console):
        files.setdefault(file, Counter())[outcome.lower()] += 1
        if outcome in ("FAILED", "ERROR"):
            failed.append(f"{file}::{name}")
    said = dict(SAID.findall(console))
    return Result(files=files, failed=tuple(failed), said=said, seconds=seconds, processor_s=processor_s, console=console)


def run(host: Host, *, files: Path, root: bytes, deadline: float, stop: threading.Event, cache: Path) -> Result:
    """Boot the host and run its tests, until they are over, `deadline` (of time.monotonic) has come
    or `stop` is set.

    Args:
        host: what to boot.
        files: the folder of files.py.
        root: the archive of tree.py.
        deadline: when it is killed.
        stop: set by another thread to end it.
        cache: where some 300 MB may be kept meanwhile.
    """
    command = shlex.join([*PYTEST, *host.tests])
    own = cpio([("init", 0o100755, (HERE / "init.sh").read_bytes()), ("command", 0o100644, f"exec {command}\n".encode())])
    words = [*KERNEL_WORDS, *([f"mayfly_kvm_intel={host.parameters}"] if host.parameters else [])]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache, prefix="run-") as name:
        folder = Path(name)
        initrd = root + (files / "modules").read_bytes() + own
        image.write(folder, kernel=(files / "vmlinuz").read_bytes(), initrd=initrd, cmdline=" ".join(words))
        (folder / "bochsrc").write_text(BOCHSRC.format(model=host.model, files=files))
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [str(files / "bochs"), "-q", "-f", "bochsrc"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is this program's to handle
            )
            processor_s = 0.0
            try:
                while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    processor_s = processor_time.processor_s(process.pid)
                    if time.monotonic() > deadline or stop.wait(POLL_S):
                        break
            finally:
                process.kill()
                process.wait()
        serial = folder / "serial.txt"
        console = serial.read_text(errors="replace") if serial.exists() else ""
        if "== " not in console:  # it did not boot: Bochs may say why
            console += (folder / "output").read_text(errors="replace")[-4000:]
        return parse(console, time.monotonic() - began, processor_s)
