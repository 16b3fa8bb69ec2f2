"""What an image's runs start from: the snapshots of machines that nobody is connected to."""

from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner
from mayfly.host.config import Config
from mayfly.host.networks import Networks
from mayfly.host.plan import make_plan, want_machine
from mayfly.host.snippet import Snippet
from mayfly.host.supply import Supply
from mayfly.images.store import InstalledImage
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.making import doing, is_usual, make
from mayfly.snapshots.store import Snapshot


class Bases:
    """Makes the snapshots that runs start from. With `network` the machine has a network card."""

    def __init__(self, config: Config, networks: Networks, spawner: Spawner, supply: Supply) -> None:
        self._config, self._networks, self._spawner, self._supply = config, networks, spawner, supply

    def _wanted(self, image: InstalledImage, network: bool = False) -> Wanted:
        return want_machine(image, self._config, self._networks.disconnected() if network else None)

    def expect(self, image: InstalledImage) -> None:
        """Have ready what the image's runs start from; it is being made if need be."""
        self._supply.expect(self._wanted(image))

    def lacks(self, image: InstalledImage, *, network: bool = False) -> bool:
        """Whether a run has missed its base, and more will come on such a machine."""
        wanted = self._wanted(image, network)
        return is_usual(wanted) and self._supply.lacks_base(wanted)

    async def make(self, image: InstalledImage, *, network: bool = False, again: bool = False) -> Snapshot:
        """The snapshot from which the image's runs start, made if need be.

        Raises:
            MayflyError: it cannot be made.
        """
        return await self._supply.ensure_base(self._wanted(image, network), again=again)

    async def make_over(self, snippet: Snippet, image: InstalledImage, *, name: str, parent: str = "", network: bool = False) -> Snapshot:
        """Run the snippet in a machine restored from the snapshot `parent`, or else from the base,
        and save what has changed.

        Raises:
            MayflyError: it cannot be made.
        """
        wanted = self._wanted(image, network)
        job = make_plan(snippet, image, self._config).job
        over = snapshots.find(parent) if parent else await self._supply.ensure_base(wanted)
        snapshots.check(over, image, wanted.machine)
        return await make(self._spawner, wanted, doing(job.zeroing()), name=name, parent=over, again=True)
