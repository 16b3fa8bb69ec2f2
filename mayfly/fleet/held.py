"""The snapshots of a host from which runs of the fleet may start."""

import contextlib
from collections.abc import Iterable

from mayfly.errors import SnapshotError
from mayfly.fleet.message import Held, name_of
from mayfly.host.config import Config
from mayfly.host.plan import want_machine
from mayfly.images.store import InstalledImage
from mayfly.snapshots import store
from mayfly.snapshots.making import base_name
from mayfly.vmm.snapshot import STATE


def held(images: Iterable[InstalledImage], config: Config) -> list[Held]:
    """Those that machines of these images can go on from here without a network,
    but not the languages' own.
    """
    found = []
    snapshots = store.startable(store.installed())
    for image in images:
        wanted = want_machine(image, config)
        for one in snapshots:
            of = one.manifest.language, one.manifest.initramfs_digest
            if of != (image.manifest.language, image.manifest.initramfs_digest) or one.manifest.name == base_name(wanted):
                continue
            with contextlib.suppress(SnapshotError, OSError):
                store.check(one, image, wanted.machine)
                found.append(Held(name=one.manifest.name, image=name_of(image), digest=one.manifest.files[STATE]))
    return found
