"""scripts/intel-check without an emulator: what goes into memory, what is made of a console."""

import importlib.util
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.debian.root import HostFilesError
from scripts.intel_check import image
from scripts.intel_check.host import Host, parse
from scripts.intel_check.main import ALL, HOSTS, report
from scripts.intel_check.tree import HERE, Tree

CONSOLE = (
    "[    0.57] noise\r\n== processor: Intel(R) Core(TM) i7\r\n== flags: ept vpid\r\n"
    "== parameters: ept=Y unrestricted_guest=N enable_apicv=Y \r\n"
    "tests/kvm/test_machine.py::test_a PASSED [ 33%]\r\n"
    "tests/kvm/test_virtio.py::test_b[two words-1] FAILED [ 66%]\r\n"
    "tests/system/test_boot.py::test_c SKIPPED (system: why) [100%]\r\n"
)
HOST = Host(name="one", model="m", tests=ALL, left_out="something")


def test_a_console_becomes_outcomes() -> None:
    result = parse(CONSOLE + "== status: 1\r\n== end\r\n")
    assert {file: dict(counts) for file, counts in result.files.items()} == {
        "tests/kvm/test_machine.py": {"passed": 1},
        "tests/kvm/test_virtio.py": {"failed": 1},
        "tests/system/test_boot.py": {"skipped": 1},
    }
    assert result.failed == ("tests/kvm/test_virtio.py::test_b[two words-1]",)
    assert not result.passed
    assert parse("== status: 0\n").passed
    assert not parse(CONSOLE).passed


def test_the_report_has_a_row_and_what_failed() -> None:
    page = report([(HOST, parse(CONSOLE, 61.0, 59.5))])
    assert "| one | 1 failed, 1 passed | 1 skipped | not run | 61 | 60 |" in page
    assert "**one**: Intel(R) Core(TM) i7; with EPT, no unrestricted guest, with APICv. It did not come to its end." in page
    assert "Left out: something." in page
    assert "- failed: `tests/kvm/test_virtio.py::test_b[two words-1]`" in page


def test_a_host_that_did_not_boot_says_so() -> None:
    assert "**one**: did not boot; kvm_intel was not loaded." in report([(HOST, parse(""))])


def test_the_hosts_have_names_of_their_own() -> None:
    assert len({host.name for host in HOSTS}) == len(HOSTS)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the boot ROM is x86's")
def test_memory_is_laid_out_as_the_bios_leaves_it(tmp_path: Path) -> None:
    kernel = bytearray(0x400 + 64)
    kernel[image.SETUP_SECTS] = 1
    kernel[image.MAGIC : image.MAGIC + 4] = b"HdrS"
    kernel[0x400:] = bytes(range(64))
    initrd = b"initrd" + bytes(image.BLOCK) + b"its end"
    image.write(tmp_path, kernel=bytes(kernel), initrd=initrd, cmdline="quiet")
    setup = (tmp_path / "setup.img").read_bytes()
    assert struct.unpack_from("<III", setup, image.CODE32_START) == (image.IMAGE, image.INITRD, len(initrd))
    (pointer,) = struct.unpack_from("<I", setup, image.CMD_LINE_PTR)
    assert setup[pointer - image.SETUP :] == b"quiet\0"
    laid = (tmp_path / "image.img").read_bytes()
    assert laid[:64] == bytes(range(64))
    # Host memory's second block is the BIOS's: what is behind the first lies one block further.
    at = image.INITRD - image.IMAGE + image.BLOCK
    assert laid[at : at + len(initrd)] == initrd
    assert laid.endswith(image.CHECK)
    rom = (tmp_path / "boot.rom").read_bytes()
    assert (len(rom), rom[:3], sum(rom) & 0xFF) == (512, b"\x55\xaa\x01", 0)


def test_what_is_not_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostFilesError, match="not a bzImage"):
        image.write(tmp_path, kernel=bytes(0x400), initrd=b"", cmdline="")


def test_a_module_comes_with_its_compiled_form(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text("answer = 42\n")
    tree = Tree()
    tree.module(source, "site/example.py")
    name = importlib.util.cache_from_source("site/example.py")
    unpacked = subprocess.run(["cpio", "--quiet", "-i", "--to-stdout", name], input=tree.archive(), capture_output=True, check=True).stdout
    compiled = tmp_path / "example.pyc"
    compiled.write_bytes(unpacked)
    program = "import runpy, sys; print(runpy.run_path(sys.argv[1])['answer'])"
    assert subprocess.run([sys.executable, "-c", program, compiled], capture_output=True, text=True, check=True).stdout == "42\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="gcc.sh assembles for x86-64")
def test_the_assemblers_wrapper_makes_what_gcc_makes(tmp_path: Path) -> None:
    (tmp_path / "tiny.S").write_text(".intel_syntax noprefix\n.globl _start\n_start:\nmov al, 1 # why\n1: jmp 1b\n")
    flags = ["-nostdlib", "-static", "-Wl,-Ttext=0x100000", "-Wl,--build-id=none,-z,noseparate-code,-N,--no-warn-rwx-segments"]
    made = []
    for number, program in enumerate(("gcc", str(HERE / "gcc.sh"))):
        subprocess.run([program, *flags, "-o", f"{number}.elf", "tiny.S"], cwd=tmp_path, check=True)
        subprocess.run(["objcopy", "-O", "binary", f"{number}.elf", f"{number}.bin"], cwd=tmp_path, check=True)
        made.append((tmp_path / f"{number}.bin").read_bytes())
    assert made[0] == made[1]
