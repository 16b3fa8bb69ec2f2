"""The image that packages are put into."""

import dataclasses
import os
import stat
from collections.abc import Iterable, Mapping

from mayfly.imagegen.options import Options
from mayfly.imagegen.packages.archives import Packed, safe_name
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.dpkg import Installed
from mayfly.imagegen.rootfs.spools import Limits, Spools
from mayfly.imagegen.rootfs.tree import Inode, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """An image under way: what was asked for, the version of its language, its merged and pruned
    tree with the spools of its contents, the number of the layer that packages are, and, as they
    were before it was pruned, what the distribution's database says and the keyring of its archive.
    """

    options: Options
    version: str
    tree: Tree
    spools: Spools
    layer: int
    system: Mapping[str, Installed]
    keyring: bytes
    progress: Progress

    @property
    def limits(self) -> Limits:
        """How large the image may be."""
        return self.options.limits

    def downloads(self) -> Downloads:
        """The registry that packages come from."""
        known = self.options.language.packages
        registry = self.options.packages_from or (known.registry if known else "")
        return Downloads(registry, offline=self.options.offline, progress=self.progress)

    def place(self, folder: str, files: Iterable[Packed]) -> None:
        """Put files beneath a folder of the image, root's and read-only.

        Raises:
            LayerError: a name is unsafe, or the tree has too many.
        """
        for file in files:
            mode = stat.S_IFREG | (0o755 if file.executable else 0o644)
            self.tree.put(os.fsencode(f"{folder}/{safe_name(file.name)}"), Inode(mode=mode, content=file.content), layer=self.layer)
