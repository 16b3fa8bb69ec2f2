"""Which parts of the sandbox this host has."""

from typing import NamedTuple

from mayfly.vmm.sandbox import landlock, namespaces, seccomp


class Part(NamedTuple):
    """A part. `lacking`: why this host does not have it."""

    name: str
    finding: str
    lacking: str = ""


def look() -> list[Part]:
    """Try each part that a host may lack, in processes of their own where that cannot be undone."""
    return [_namespaces(), _landlock(), _seccomp()]


def _namespaces() -> Part:
    cell = namespaces.Making().finish()
    cell.close()
    lacking = "; ".join(f"{kind}: {why}" for kind, why in cell.lacking.items())
    return Part("namespaces", ", ".join(cell.descriptors) or "none", lacking)


def _landlock() -> Part:
    try:
        version = landlock.abi()
    except OSError as error:
        return Part("landlock", "none", error.strerror or "absent")
    bounds = ["paths", *["TCP"] * (version >= landlock.NETWORK_ABI), *["signals"] * (version >= landlock.SCOPES_ABI)]
    return Part("landlock", f"{', '.join(bounds)} (ABI {version})")


def _seccomp() -> Part:
    try:
        seccomp.available()
    except OSError as error:
        return Part("seccomp", "none", error.strerror or "absent")
    return Part("seccomp", "two filters")
