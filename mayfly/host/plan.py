"""From a snippet, an image and the configuration to what is to be done: the machine, the START with
its files, the time for it all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mayfly.api.problems import UnprocessableError
from mayfly.host.config import Config
from mayfly.host.snippet import Snippet
from mayfly.images import manifest
from mayfly.images.store import Image
from mayfly.protocol.frames import FileEntry, Start, Step, check_start
from mayfly.protocol.frames import pack as check_fits
from mayfly.vmm.config import MIB, Channel, MachineConfig, NetworkConfig

SLACK_S = 10.0
"""On top of all limits: writing files, starting programs, killing them."""
KERNEL_RESERVE = 48 * MIB
"""Memory that the guest's kernel and agent use themselves."""
MIN_STEP_MEMORY = 64 * MIB
ZERO_MEMORY = Step(name="zero", argv=("/init", "--zero-memory"))
"""Before a machine is saved: what its free memory holds would be part of the snapshot."""
RATES: Mapping[Channel, float] = {Channel.SERIAL: 2048.0, Channel.VIRTIO: 256 * 1024.0}
"""Bytes a second that each channel surely reaches, even on an emulated host: so much time is
allowed for what goes over it.
"""


class Wanted(NamedTuple):
    """A machine of `image` that is to come up within `timeout_s`."""

    image: Image
    machine: MachineConfig
    timeout_s: float

    def restored_from(self, chain: Sequence[Path]) -> "Wanted":
        """The same machine, but going on from the snapshots in these folders."""
        return self._replace(machine=dataclasses.replace(self.machine, restore=tuple(map(str, chain))))

    def saved_to(self, folder: Path) -> "Wanted":
        """The same machine, which can be saved to `folder`. Its network device, if it has one, is
        connected to nothing.
        """
        network = self.machine.network and self.machine.network.disconnected()
        return self._replace(machine=dataclasses.replace(self.machine, network=network, save_to=str(folder)))


class Plan(NamedTuple):
    """One run to be executed. `deadline_s` is the time from HELLO to DONE; each byte on the channel
    extends it by 1/`rate` seconds.
    """

    wanted: Wanted
    start: Start
    files: tuple[bytes, ...]
    deadline_s: float
    rate: float


def want_machine(image: Image, config: Config, factor: float, network: NetworkConfig | None = None) -> Wanted:
    """The machine in which snippets of `image` run; its time is multiplied by `factor`."""
    memory = max(config.memory, image.manifest.memory)
    machine = MachineConfig(
        kernel=str(config.kernel),
        initrd=str(image.initramfs),
        memory=memory + -memory % MIB,
        cpus=config.cpus,
        channel=config.channel,
        user=config.user or None,
        network=network,
    )
    return Wanted(image=image, machine=machine, timeout_s=config.boot_timeout_s * factor)


def make_warmup(image: Image, config: Config, factor: float) -> Plan | None:
    """The image's warm-up as a run of its own, if it has one. Its steps may take what a build
    may.
    """
    warmup = image.manifest.warmup
    if not warmup.steps:
        return None
    files = {path: text.encode() for path, text in warmup.files.items()}
    slow = dataclasses.replace(config, run_wall_s=config.build_wall_s)
    return make_plan(Snippet(files=files), image, slow, factor, steps=warmup.steps)


def zeroing(plan: Plan) -> Plan:
    """`plan` with a step at its end that zeroes the machine's free memory."""
    steps = (*plan.start.steps, ZERO_MEMORY)
    return plan._replace(start=dataclasses.replace(plan.start, steps=steps))


def make_plan(
    snippet: Snippet,
    image: Image,
    config: Config,
    factor: float,
    network: NetworkConfig | None = None,
    steps: Sequence[manifest.Step] = (),
) -> Plan:
    """Put a plan together; times are multiplied by `factor`, and the machine gets `network`.
    Without `steps` it has its language's.

    Raises:
        RequestError: the snippet does not fit the language, the limits or the protocol. Nothing has
            been done by then.
    """
    content = image.manifest
    files = _files(snippet, content)
    wanted = want_machine(image, config, factor, network)
    asked_for = steps or content.steps
    unknown = set(snippet.limits) - {step.name for step in asked_for}
    if unknown:
        names = ", ".join(step.name for step in asked_for)
        raise UnprocessableError(
            f"limits for the step {min(unknown)[:80]!r}, which {content.language} does not have", hint=f"its steps are {names}"
        )
    limited = tuple(_step(step, snippet, config, factor, wanted.machine.memory - content.unpacked_size) for step in asked_for)
    start = Start(
        env=tuple({**content.env, **snippet.env}.items()),
        steps=limited,
        files=tuple(FileEntry(path, 0o644, len(data)) for path, data in files.items()),
    )
    check_start(start)
    check_fits(start, 1)
    return Plan(
        wanted=wanted,
        start=start,
        files=tuple(files.values()),
        deadline_s=sum(step.wall_ms for step in limited) / 1000 + SLACK_S * factor,
        rate=RATES[config.channel],
    )


def _files(snippet: Snippet, content: manifest.Manifest) -> dict[str, bytes]:
    files = dict(snippet.files)
    if snippet.source is not None:
        if content.source_file in files:
            raise UnprocessableError(f'"source" and "files" both hold {content.source_file!r}', hint="give it once")
        files = {content.source_file: snippet.source, **files}
    return files


def _step(step: manifest.Step, snippet: Snippet, config: Config, factor: float, free: int) -> Step:
    """The step with its limits: the server's, or its manifest's, or the snippet's if that asks for
    less.
    """
    kind = "build" if step.name == "build" else "run"
    asked = snippet.limits.get(step.name, {})

    def limit(name: str, fixed: float | None) -> float:
        most = fixed if fixed is not None else getattr(config, f"{kind}_{name}")
        if name in asked and most and asked[name] > most:
            raise UnprocessableError(
                f"limits.{step.name}.{name} is {asked[name]:g}; this server allows at most {most:g}",
                hint=f"ask for less, or raise {kind}_{name} in the server's configuration",
            )
        return float(asked.get(name, most))

    argv = [part for piece in step.argv for part in (snippet.args if piece == "{args}" else (piece,))]
    memory = limit("memory", step.memory) or max(MIN_STEP_MEMORY, free - KERNEL_RESERVE)
    return Step(
        name=step.name,
        argv=tuple(argv),
        cwd=step.cwd,
        env=tuple(step.env.items()),
        wall_ms=max(1, _ms(limit("wall_s", step.wall_s) * factor)),
        cpu_ms=_ms(limit("cpu_s", step.cpu_s) * factor),
        memory=int(memory),
        processes=int(limit("processes", step.processes)),
        output=int(limit("output", step.output)),
        file_size=config.file_size,
        stdin=step.stdin,
    )


def _ms(seconds: float) -> int:
    """Milliseconds, as far as the protocol's u32 goes (49 days)."""
    return min(round(seconds * 1000), 0xFFFF_FFFF)
