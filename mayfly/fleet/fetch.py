"""How a host gets an image or a snapshot that the fleet offers and it lacks: from the registry, by
digest, once however many runs wait for it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from mayfly.errors import HostError, MayflyError
from mayfly.fleet.catalog import Offer
from mayfly.fleet.message import Held, name_of, queue_of, token_of
from mayfly.fleet.shared import readable
from mayfly.images.store import InstalledImage

log = logging.getLogger(__name__)
RETRY_S = 30.0
"""After a fetch that failed until this host asks for such runs again."""
CLOSE_S = 5.0


class Fetch:
    """A fetch, whose `run` is for a thread. It is the Progress of what it does.

    Attributes:
        stopped: set it, and the fetch fails soon.
    """

    def __init__(self, offer: Offer, keys: Sequence[str] = ()) -> None:
        self.offer = offer
        self._keys = keys
        self.stopped = False
        self._done = self._total = 0

    @property
    def percent(self) -> int:
        """How much is done, of what is known to be needed."""
        return 100 * self._done // self._total if self._total else 0

    def run(self) -> None:
        """Fetch and install it.

        Raises:
            RegistryError: it cannot be had, is not what its digest says, or is not signed with one
                of the keys, if there are any.
            HostError, SnapshotError: it cannot be kept here, or the fetch was stopped.
        """
        from mayfly.host import artifacts
        from mayfly.imagegen.build import source_of
        from mayfly.imagegen.oci.artifact import pull
        from mayfly.imagegen.oci.reference import parse_reference

        log.info("fleet: fetching %s", self.offer.reference)
        source = source_of(parse_reference(self.offer.reference), self, insecure=self.offer.insecure, offline=False)
        if self.offer.snapshot:
            artifacts.pull(source, self, self._keys)
        else:
            pull(source, name_of(self.offer.image), self, self._keys)
        log.info("fleet: fetched %s", self.offer.reference)

    def say(self, message: str) -> None:
        """Log it."""
        log.info("fleet: %s: %s", self.offer.reference, message)

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Count what is done."""
        self._total += total or 0
        yield self._advance

    def _advance(self, count: int) -> None:
        self._done += count
        if self.stopped:
            raise HostError("the host stops")


class Fetches:
    """What this host lacks, and fetches; `installed` is called after a fetch, before anybody hears
    of its end.
    """

    def __init__(self, installed: Callable[[], None], keys: Sequence[str] = ()) -> None:
        self._installed = installed
        self._keys = keys
        self._offers: dict[str, Offer] = {}
        self._snapshots: dict[str, Held] = {}
        self._under_way: dict[str, tuple[Fetch, asyncio.Task[None]]] = {}
        self._not_before: dict[str, float] = {}

    def offered(self, offers: Sequence[Offer]) -> None:
        """The fleet offers these."""
        self._offers, self._snapshots = {}, {}
        for offer in readable(offers, Offer.read):
            if held := offer.snapshot:
                queue = queue_of(held.image, held.name)
                self._offers[queue], self._snapshots[queue] = offer, held
            else:
                self._offers[token_of(name_of(offer.image))] = offer

    def lacking(self, images: Mapping[str, InstalledImage]) -> dict[str, InstalledImage]:
        """The images that are offered and not among `images`, or are others there."""
        found = {}
        for lang, offer in self._offers.items():
            if offer.snapshot:
                continue
            mine, wanted = images.get(lang), offer.image
            same = mine is not None and mine.manifest.initramfs_digest == wanted.manifest.initramfs_digest
            if not same:
                found[lang] = wanted
        return found

    def lacking_snapshots(self, held: Mapping[str, Held]) -> dict[str, Held]:
        """The snapshots that are offered and not among those, or are others there, by queues."""
        return {queue: one for queue, one in self._snapshots.items() if queue not in held or held[queue].digest != one.digest}

    def may(self, lang: str) -> bool:
        """Whether it may be fetched now: not soon after that failed."""
        now = asyncio.get_running_loop().time()
        return now >= self._not_before.get(lang, now)

    def put_off(self, lang: str, seconds: float) -> None:
        """Do not ask for such runs for some time."""
        self._not_before[lang] = asyncio.get_running_loop().time() + seconds

    @property
    def progress(self) -> dict[str, int]:
        """What is being fetched, in percent."""
        return {lang: fetch.percent for lang, (fetch, _) in self._under_way.items()}

    async def fetch(self, lang: str) -> None:
        """Have the image of the language, or the snapshot of the queue, which is offered.

        Raises:
            MayflyError: it cannot be had now.
        """
        if not self.may(lang):
            raise HostError("it could not be fetched a moment ago", hint="look at the host's log")
        if lang not in self._under_way:
            if lang not in self._offers:
                raise HostError(f"{lang} is offered no more")
            fetch = Fetch(self._offers[lang], self._keys)
            self._under_way[lang] = fetch, asyncio.create_task(self._go(lang, fetch), name=f"fetch {lang}")
        await asyncio.shield(self._under_way[lang][1])

    async def _go(self, lang: str, fetch: Fetch) -> None:
        try:
            await asyncio.to_thread(fetch.run)
            await asyncio.to_thread(self._installed)
        except MayflyError as error:
            log.error("fleet: %s cannot be fetched: %s", fetch.offer.reference, error)
            self.put_off(lang, RETRY_S)
            raise
        finally:
            del self._under_way[lang]

    async def close(self) -> None:
        """Fetch nothing any more."""
        fetches = list(self._under_way.values())
        for fetch, _ in fetches:
            fetch.stopped = True
        if fetches:
            await asyncio.wait([task for _, task in fetches], timeout=CLOSE_S)
