"""Snapshots with names, of machines that are played."""

from pathlib import Path

from mayfly.host.plan import want_machine
from mayfly.runs.service import Service
from mayfly.snapshots import making
from mayfly.snapshots.store import Snapshot


async def make_snapshot(service: Service, name: str, language: str = "toy") -> Snapshot:
    """A diff of that name over the language's base, which is made if need be."""
    Path(service.config.kernel).write_bytes(b"kernel")
    wanted = want_machine(service.images.find(language), service.config)
    base = await service.supply.ensure_base(wanted)
    return await making.make(service.spawner, wanted, None, name=name, parent=base)
