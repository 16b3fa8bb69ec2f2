"""The words of the kernel's command line, and of RESUMED, that are for the agent
(agent/PROTOCOL.md, "The kernel's command line").
"""

from collections.abc import Mapping, Sequence


def channel(kind: str, place: str | int) -> str:
    """What carries the channel: a `serial` device, a `virtio` port by name, or a `tcp` port."""
    return f"mayfly.channel={kind}:{place}"


def token(text: str) -> str:
    """What the host shows first on a channel over TCP."""
    return f"mayfly.token={text}"


def network(given: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A network: each `mac`, `address`, `gateway` and `nameserver`."""
    return tuple(f"mayfly.{name}={value}" for name, values in given.items() for value in values)
