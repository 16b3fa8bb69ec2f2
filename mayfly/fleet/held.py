"""The snapshots of a host from which runs of the fleet may start."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mayfly.errors import SnapshotError
from mayfly.fleet.message import Held, name_of
from mayfly.host.config import Config
from mayfly.host.plan import want_machine
from mayfly.images.store import InstalledImage
from mayfly.snapshots import store
from mayfly.snapshots.making import base_name
from mayfly.vmm.snapshot import STATE

log = logging.getLogger(__name__)
Failed = dict[tuple[str, str], Any]
"""By folder and digest of the image, what its files were when it did not fit."""


def held(images: Iterable[InstalledImage], config: Config, failed: Failed) -> list[Held]:
    """Those that machines of these images can go on from here without a network,
    but not the languages' own. Those in `failed` do not fit, which is looked at once.
    """
    found = []
    snapshots = store.startable(store.installed())
    for image in images:
        wanted = want_machine(image, config)
        for one in snapshots:
            of = one.manifest.language, one.manifest.initramfs_digest
            if of != (image.manifest.language, image.manifest.initramfs_digest) or one.manifest.name == base_name(wanted):
                continue
            key, kernel = (str(one.folder), image.manifest.initramfs_digest), Path(wanted.machine.kernel)
            try:
                stamps = [store.stamps(folder, kernel) for folder in one.chain]
                if failed.get(key) == stamps:
                    continue
                store.check(one, image, wanted.machine)
                found.append(Held(name=one.manifest.name, image=name_of(image), digest=one.manifest.files[STATE]))
            except SnapshotError as error:
                log.warning("fleet: the snapshot %s is left out: %s", one.manifest.name, error)
                if error.__cause__ is None:  # else it could not be read, which may pass
                    failed[key] = stamps
            except OSError as error:  # it goes just now
                log.debug("fleet: the snapshot %s is left out: %s", one.manifest.name, error)
    return found
