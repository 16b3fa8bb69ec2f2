"""What KVM keeps of an aarch64 machine besides its memory. Not taken out nor put back yet: this architecture has no snapshots."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mayfly.errors import SnapshotError
from vmm.arch.aarch64.interrupts import InterruptController
from vmm.kvm.kvm import Kvm, Vcpu, Vm


def identity(kvm: Kvm) -> NoReturn:
    """There is none.

    Raises:
        SnapshotError: always.
    """
    raise SnapshotError("there are no snapshots on aarch64", hint="start the machine without one")


def save(vm: Vm, controller: InterruptController, vcpus: Sequence[Vcpu]) -> NoReturn:
    """Not there; see `identity`."""
    identity(vm.kvm)


def restore(vm: Vm, controller: InterruptController, vcpus: Sequence[Vcpu], state: Mapping[str, Any]) -> NoReturn:
    """Not there; see `identity`."""
    identity(vm.kvm)
