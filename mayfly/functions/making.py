"""From a function to guests of it: the job that builds and loads it, the snapshot of the loaded
function, and guests that start from that.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Mapping

import msgspec

from mayfly.errors import (
    BootError,
    ConfigError,
    FunctionFailedError,
    GuestError,
    MayflyError,
    NetworkError,
    SnapshotError,
    SnapshotNotFoundError,
    UnprocessableError,
)
from mayfly.functions import store
from mayfly.functions.lasting import Lasting
from mayfly.functions.request import Request
from mayfly.functions.spec import FunctionSpec
from mayfly.functions.store import Function
from mayfly.guests.function import FunctionRequest, FunctionResponse, ask, is_loaded, load, watch
from mayfly.guests.job import ZERO_MEMORY, Job, Wanted
from mayfly.guests.outcome import Outcome
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.start import Guest, StartKind, start
from mayfly.host.config import Config
from mayfly.host.networks import Networks
from mayfly.host.plan import make_plan
from mayfly.host.snippet import Snippet, check_paths
from mayfly.host.supply import Supply
from mayfly.images import manifest
from mayfly.images.store import InstalledImage
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import Start
from mayfly.schema import Record, replace
from mayfly.snapshots import making
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.store import Snapshot
from mayfly.vmm.config import Channel, NetworkConfig
from mayfly.vmm.snapshot.files import shape

log = logging.getLogger(__name__)
OUTPUT_KEPT = 8000
"""Bytes of what a build printed that its error has, the last ones."""
TRIED_WITH = ("application/json", b"{}")
"""What is asked to see which pages an answer takes: gateways send JSON."""
TRIED_S = 5.0
"""For that answer, at most."""


class Revision(Record, frozen=True, kw_only=True):
    """A function with its image: all that its guests are made of. `loaded` is the START of one in
    which the function is loaded, without its files; `key` stands for what is loaded.
    """

    function: Function
    image: InstalledImage
    wanted: Wanted
    loaded: Start
    key: str

    @property
    def spec(self) -> FunctionSpec:
        """What its author says of it."""
        return self.function.spec

    @property
    def memory(self) -> int:
        """Bytes of a guest."""
        return self.wanted.machine.memory

    @property
    def snapshot_name(self) -> str:
        """The name of the snapshot of the loaded function."""
        return f"{snapshots.FUNCTION_PREFIX}{self.function.name}.{self.key[:12]}"


def revise(function: Function, image: InstalledImage, config: Config, networks: Networks) -> Revision:
    """The function as it is with this image.

    Raises:
        RequestError: the image loads no functions, there is no network here, or the environment
            does not fit.
    """
    spec = function.spec
    job, wanted = _plan(function, image, {}, config)
    if spec.network:
        wanted = replace(wanted, machine=replace(wanted.machine, network=networks.disconnected()))
    facts = (
        (function.code_digest, spec.language, spec.entry, dict(spec.env)),
        (spec.snapshot.base, spec.snapshot.diff, msgspec.to_builtins(shape(wanted.machine))),
        (image.manifest.initramfs_digest, msgspec.to_builtins(_how(image)), job.step_names),
    )
    key = hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()
    return Revision(function=function, image=image, wanted=wanted, loaded=job.start, key=key)


def _how(image: InstalledImage) -> manifest.Function:
    """How the image's language loads functions."""
    if image.manifest.function is None:
        raise UnprocessableError(
            f"the image of {image.manifest.language} {image.manifest.version} loads no functions",
            hint=f"build it again: imagegen build {image.manifest.language}",
        )
    return image.manifest.function


def _for_machine(spec: FunctionSpec, config: Config) -> Config:
    """The configuration with the function's machine. No snapshot holds a connection, so the channel
    is never TCP.
    """
    channel = Channel.VIRTIO if config.channel is Channel.TCP else config.channel
    return replace(config, memory=spec.memory or config.memory, cpus=spec.vcpus, channel=channel)


def _plan(function: Function, image: InstalledImage, code: Mapping[str, bytes], config: Config) -> tuple[Job, Wanted]:
    """The job that builds and loads the function, and the machine for that, without its network."""
    spec, how = function.spec, _how(image)
    if clash := set(code) & set(how.files):
        raise UnprocessableError(f"code has {min(clash)!r}, a file of Mayfly's own", hint="rename it")
    files = {**code, **{path: text.encode() for path, text in how.files.items()}}
    check_paths(files)
    steps = tuple(_with_entry(step, spec.entry or how.entry) for step in how.steps)
    plan = make_plan(Snippet(files=files, env=spec.env), image, _for_machine(spec, config), steps=steps)
    *build, program = plan.job.start.steps
    program = dataclasses.replace(program, wall_ms=0, cpu_ms=0, stdin=False, function=True)
    dirty = build or not spec.snapshot.base  # what a compiler or the kernel's start left would be in the snapshot
    zero = (ZERO_MEMORY,) if dirty and spec.snapshot.diff and not config.cold else ()
    whole = dataclasses.replace(plan.job.start, steps=(*build, *zero, program))
    return replace(plan.job, start=whole, deadline_s=plan.job.deadline_s + config.here(config.build_wall_s)), plan.wanted


def _with_entry(step: manifest.LanguageStep, entry: str) -> manifest.LanguageStep:
    return replace(step, argv=tuple(part.replace("{entry}", entry) for part in step.argv))


class FunctionMachines:
    """Guests of functions, and snapshots of them."""

    def __init__(self, config: Config, spawner: Spawner, supply: Supply, networks: Networks) -> None:
        self._config = config
        self._spawner = spawner
        self._supply = supply
        self._networks = networks
        self._leases: dict[VmmProcess, NetworkConfig] = {}
        self._lasting: dict[str, Lasting] = {}

    async def start(self, revision: Revision) -> tuple[Guest, StartKind]:
        """A guest with the function loaded, and how it started. The snapshot is made if need be.

        Raises:
            BusyError: all networks are taken.
            FunctionFailedError: the function cannot be built or loaded.
            MayflyError: the guest did not come up.
        """
        network = self._networks.lease() if revision.spec.network else None
        try:
            guest = await self._start(revision, replace(revision.wanted, machine=replace(revision.wanted.machine, network=network)))
        except BaseException:
            if network is not None:
                self._networks.give_back(network)
            raise
        if network is not None:
            self._leases[guest.process] = network
        return guest, guest.kind

    async def _start(self, revision: Revision, wanted: Wanted) -> Guest:
        if self._has_snapshot(revision):
            snapshot = await self.ensure(revision)
            try:
                return await self._restore(revision, wanted, snapshot)
            except NetworkError:
                raise  # another machine would have no other
            except MayflyError as error:
                log.warning("the snapshot %s cannot be used, and is made again: %s", revision.snapshot_name, error)
            return await self._restore(revision, wanted, await self.ensure(revision, again=True))
        code = await asyncio.to_thread(store.load_code, revision.function)
        return await self._boot(revision, code, wanted)

    def _has_snapshot(self, revision: Revision) -> bool:
        return revision.spec.snapshot.diff and not self._config.cold

    async def _restore(self, revision: Revision, wanted: Wanted, snapshot: Snapshot) -> Guest:
        options = revision.spec.snapshot
        restored = replace(wanted, loaded=revision.loaded).restored_from(
            snapshot.chain, copy_base=options.copy_base, copy_diff=options.copy_diff, load_ws=options.load_ws
        )
        guest = await start(self._spawner, restored)
        self._supply.note(guest, snapshot)
        return guest

    async def _boot(self, revision: Revision, code: Mapping[str, bytes], wanted: Wanted) -> Guest:
        """A guest that builds and loads the function itself, from the base if it may."""
        if revision.spec.snapshot.base and not self._config.cold:
            await self._supply.ensure_base(revision.wanted)
            guest = await self._supply.get(wanted)
        else:
            guest = await start(self._spawner, wanted)
        await self._load(guest, revision, code)
        return guest

    async def _load(self, guest: Guest, revision: Revision, code: Mapping[str, bytes]) -> None:
        """Build and load the function in the guest, which is gone if that fails."""
        job, _ = _plan(revision.function, revision.image, code, self._config)
        outcome = Outcome(job.step_names, kept=OUTPUT_KEPT)
        try:
            await load(guest, job, outcome)
        except BaseException as caught:
            await guest.process.stop(0)
            if isinstance(caught, GuestError) and not isinstance(caught, BootError):
                raise _failure(revision, outcome, caught) from caught
            raise

    async def ensure(self, revision: Revision, code: Mapping[str, bytes] | None = None, *, again: bool = False) -> Snapshot:
        """The snapshot of the loaded function, made if need be, of the files `code` or of those
        that are stored. It takes the memory of one guest.

        Raises:
            FunctionFailedError: the function cannot be built or loaded.
            MayflyError: the snapshot cannot be made.
        """
        if not again and (found := await asyncio.to_thread(_find, revision)):
            return found
        if code is None:
            code = await asyncio.to_thread(store.load_code, revision.function)
        parent = await self._supply.ensure_base(revision.wanted) if revision.spec.snapshot.base else None
        files = code

        async def prepare(guest: Guest) -> None:
            await self._load(guest, revision, files)

        async def answer(guest: Guest) -> None:
            """Answer a request: what a guest reads and writes for that is its working set."""
            content_type, payload = TRIED_WITH
            request = FunctionRequest(id=0, content_type=content_type, payload=payload)
            await ask(guest, request, _Unheard(), self._config.here(min(revision.spec.timeout_s, TRIED_S)))

        use = (replace(revision.wanted, loaded=revision.loaded), answer) if revision.spec.snapshot.dump_ws else None
        made = await making.make(
            self._spawner, revision.wanted, prepare, name=revision.snapshot_name, parent=parent, again=again, use=use, function=revision.key
        )
        log.info("made the snapshot %s, %d MiB", revision.snapshot_name, made.manifest.memory_bytes >> 20)
        await asyncio.to_thread(forget_snapshots, revision.function.name, but=revision.snapshot_name)
        return made

    async def try_out(self, revision: Revision, code: Mapping[str, bytes], *, again: bool = False) -> None:
        """See that the function can be built and loaded from the files `code`; its snapshot is made
        if it has one, with `again` in any case.

        Raises:
            MayflyError: as `ensure`.
        """
        if self._has_snapshot(revision):
            await self.ensure(revision, code, again=again)
            return
        guest = await self._boot(revision, code, revision.wanted)
        await guest.process.stop(0)

    async def ask(
        self, guest: Guest, asked: FunctionRequest, request: Request, timeout_s: float, every_s: float
    ) -> tuple[Guest, FunctionResponse]:
        """The function's answer, and the guest that gave it: another one if the first was lost, and
        had been saved, as it is every `every_s` seconds (0: never), or if the request came with a
        machine of its own.

        Raises:
            MayflyError: there is none; the guest is gone.
        """
        if every_s or (request.movable and guest.wanted.machine.network is None):
            lasting = Lasting(self._spawner, self._supply, guest, asked, request, timeout_s, every_s)
            self._lasting[request.id] = lasting
            try:
                return await lasting.ask()
            finally:
                if self._lasting.get(request.id) is lasting:  # it may have gone elsewhere, and come back
                    del self._lasting[request.id]
        return guest, await ask(guest, asked, request, timeout_s)

    def going(self, request_id: str) -> Lasting | None:
        """What asks the guest of a request that outlasts its machine, or may go elsewhere now."""
        return self._lasting.get(request_id)

    async def stop(self, guest: Guest) -> None:
        """End the guest."""
        await guest.process.stop(0)
        network = self._leases.pop(guest.process, None)
        if network is not None:
            self._networks.give_back(network)

    def is_alive(self, guest: Guest) -> bool:
        """Whether the guest can be asked, as far as is known."""
        return guest.process.alive and is_loaded(guest)

    async def watch(self, guest: Guest) -> None:
        """Return when the guest cannot be asked any more."""
        await watch(guest)


class _Unheard:
    """Drops what a function prints."""

    def note(self, event: Event) -> None:
        """Drop it."""


def _find(revision: Revision) -> Snapshot | None:
    """The snapshot of the loaded function, if there is one that can be used."""
    try:
        snapshot = snapshots.find(revision.snapshot_name)
        snapshots.check(snapshot, revision.image, revision.wanted.machine, function=revision.key)
    except SnapshotNotFoundError:
        return None
    except SnapshotError as error:
        log.warning("a snapshot is not used: %s", error)
        return None
    return snapshot


def forget_snapshots(name: str, *, but: str = "") -> None:
    """Remove the snapshots of the function, except for the one named `but`."""
    for found in snapshots.of_function(name):
        if found != but:
            with contextlib.suppress(SnapshotError, ConfigError, OSError):
                snapshots.remove(found)


def _failure(revision: Revision, outcome: Outcome, caught: GuestError) -> FunctionFailedError:
    """The error of a function that was not loaded."""
    name, output = revision.function.name, outcome.tail.decode(errors="replace").rstrip()
    if not outcome.steps or outcome.built:
        what = caught.message
    elif failure := outcome.failure():
        what = f"the step {outcome.steps[-1].name!r} {failure.partition(';')[0]}"
    else:
        what = "its program ended before it had loaded the function"
    return FunctionFailedError(f"the function {name!r} could not be loaded: {what}", hint="correct its code", output=output)
