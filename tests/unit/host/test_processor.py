"""What the doctor says of processors and kernels of many kinds, from files that tests write."""

from pathlib import Path

import pytest

from mayfly.host.processor import NEEDED, NEEDED_BY_ALL, Capability, kernel, virtualisation

HASWELL = "flags : fpu vmx ept\nvmx flags : ept vpid unrestricted_guest\n"
ALL = frozenset(Capability)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def parameters(module: str, **values: str) -> dict[str, str]:
    return {f"sys/module/{module}/parameters/{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("cpuinfo", "files", "ok", "words"),
    [
        (HASWELL, parameters("kvm_intel", ept="Y", unrestricted_guest="Y"), True, "VMX"),
        (HASWELL, parameters("kvm_intel", ept="Y", unrestricted_guest="N"), True, "VMX without unrestricted guest"),
        (
            HASWELL,
            parameters("kvm_intel", ept="N", unrestricted_guest="N"),
            True,
            "VMX without EPT and unrestricted guest (KVM shadows the guests' page tables, which is slow)",
        ),
        (HASWELL, {}, False, "VMX; kvm_intel is not loaded"),
        ("flags : vmx\n", {}, False, "VMX without EPT and unrestricted guest (KVM shadows"),
        ("flags : svm npt\n", parameters("kvm_amd", npt="1"), True, "SVM"),
        ("flags : svm\n", parameters("kvm_amd", npt="0"), True, "SVM without NPT (KVM shadows"),
        ("flags : svm npt hypervisor\n", parameters("kvm_amd", npt="Y"), True, "SVM; nested: this host is itself a virtual machine"),
        ("flags : hypervisor\n", {"sys/module/kvm_pvm/srcversion": ""}, False, "PVM: KVM without the processor's virtualisation; nested"),
        ("flags : fpu\n", {}, False, "neither VMX nor SVM"),
    ],
)
def test_x86(tmp_path: Path, cpuinfo: str, files: dict[str, str], ok: bool, words: str) -> None:
    write(tmp_path, {"proc/cpuinfo": f"processor : 0\n{cpuinfo}\n", **files})
    found = virtualisation("x86_64", emulated=False, root=tmp_path)
    assert (found.ok, found.text[: len(words)]) == (ok, words)
    assert found.ok or found.hint


def test_an_emulated_processor_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "flags : svm npt hypervisor\n", **parameters("kvm_amd", npt="1")})
    assert virtualisation("x86_64", emulated=True, root=tmp_path).text == "SVM; emulated: QEMU's TCG is this host's processor"


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ("6,1,2,-;kvm [1]: VHE mode initialized successfully\n", "EL2 with VHE"),
        ("6,1,2,-;kvm [1]: Hyp nVHE mode initialized successfully\n", "EL2 with nVHE"),
        ("6,1,2,-;kvm [1]: Protected nVHE mode initialized successfully\n", "EL2 with nVHE"),
        ("6,1,2,-;something else\n", "EL2"),
    ],
)
def test_arm(tmp_path: Path, log: str, text: str) -> None:
    write(tmp_path, {"dev/kvm": "", "dev/kmsg": log})
    assert virtualisation("aarch64", emulated=False, root=tmp_path).text == text


def test_an_arm_host_whose_log_may_not_be_read(tmp_path: Path) -> None:
    write(tmp_path, {"dev/kvm": ""})
    assert virtualisation("aarch64", emulated=True, root=tmp_path).text == "EL2; emulated: QEMU's TCG is this host's processor"


def test_an_arm_host_without_el2(tmp_path: Path) -> None:
    found = virtualisation("aarch64", emulated=False, root=tmp_path)
    assert (found.ok, found.text) == (False, "Linux does not run at EL2, or has no KVM")


def test_a_kernel_older_than_any_that_was_tried() -> None:
    found = kernel("5.10.0-30-amd64", "x86_64", ALL)
    assert (found.ok, found.text) == (True, "Linux 5.10.0-30-amd64, older than all that Mayfly was tried on (6.12)")
    assert kernel("6.12.1+deb13-amd64", "x86_64", ALL).text == "Linux 6.12.1+deb13-amd64"


def test_a_kernel_without_what_is_only_useful() -> None:
    found = kernel("6.18", "x86_64", ALL - {Capability.PRE_FAULT_MEMORY})
    assert (found.ok, found.text) == (True, "Linux 6.18; without PRE_FAULT_MEMORY, restored guests map their pages one by one")


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_kernel_without_what_is_needed(arch: str) -> None:
    for lacking in (*NEEDED_BY_ALL, *NEEDED[arch]):
        found = kernel("6.18", arch, ALL - {lacking})
        assert (found.ok, found.text) == (False, f"Linux 6.18: its KVM lacks {lacking.name}")
        assert found.hint


def test_a_kernel_that_cannot_be_asked() -> None:
    assert kernel("6.18", "x86_64", None).text == "Linux 6.18"
