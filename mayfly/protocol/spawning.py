"""What the zygote and its client say to each other over a SOCK_SEQPACKET pair, one message
(`report.pack`) a packet: `Spawn`, with descriptors, and `Signal` to the zygote, `Reaped` from it.
"""

from mayfly.schema import Record, msgspec

MESSAGE_LIMIT = 64 * 1024
DESCRIPTORS = 3  # Of a machine: its ends of the channel, the report pipe and the control socket
GROUPS = 1  # And at most one more: the `cgroup.procs` of its control group
NOT_FORKED = 1  # Status of a machine that never had a process
NOBODY = 0  # No machine has this number: for a message that does not tell its machine's


class Spawn(Record, tag="spawn", frozen=True, kw_only=True):
    """Fork a vmm process; `config` is a MachineConfig, which that process alone decodes. It enters
    the control group whose descriptor comes too, if one does.
    """

    machine: int
    config: msgspec.Raw


class Signal(Record, tag="signal", frozen=True, kw_only=True):
    """Send the vmm process of `machine` a signal, if it still has one."""

    machine: int
    number: int


class Reaped(Record, tag="reaped", frozen=True, kw_only=True):
    """The vmm process of `machine` is gone; `status`: exit code, or minus the signal."""

    machine: int
    status: int
