"""From a snippet, an image and the configuration to what is to be done: the machine, the START with
its files, the time for it all.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

import msgspec

from mayfly.errors import BodyTooLargeError, EncodeError, OversizeError, UnprocessableError
from mayfly.guests.job import RATES, Job, Wanted
from mayfly.host.config import Config
from mayfly.host.snippet import RUN, Case, Snippet, check_paths
from mayfly.images import manifest
from mayfly.images.store import InstalledImage
from mayfly.protocol.frames import FileEntry, Start, Step, check_start
from mayfly.protocol.frames import pack as check_fits
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig, NetworkConfig

SLACK_S = 10.0
"""On top of all limits: writing files, starting programs, killing them."""
KERNEL_RESERVE = 48 * MIB
"""Memory that the guest's kernel and agent use themselves."""
MIN_STEP_MEMORY = 64 * MIB

MAX_ADDRESSES = 16
"""Sockets that are opened for a program."""
PORT = re.compile("[0-9]{1,5}")


class Plan(NamedTuple):
    """One run to be executed: the machine, and the job in it. A run with cases has in `job` only
    what is done once, and a further job for each case.
    """

    wanted: Wanted
    job: Job
    step_names: tuple[str, ...]
    cases: tuple[Job, ...] = ()
    tests: str = ""
    collect: tuple[str, ...] = ()


def want_machine(image: InstalledImage, config: Config, network: NetworkConfig | None = None) -> Wanted:
    """The machine in which snippets of `image` run. A channel over TCP needs a network; where there
    is none, virtio carries it.
    """
    channel = Channel.VIRTIO if config.channel is Channel.TCP and network is None else config.channel
    memory = max(config.memory, image.manifest.memory)
    machine = MachineConfig(
        kernel=str(config.kernel),
        initrd=str(image.initramfs),
        memory=memory + -memory % MIB,
        cpus=config.cpus,
        channel=channel,
        user=config.user or None,
        uid_range=config.uids,
        sandbox=config.sandbox,
        network=network,
    )
    return Wanted(image=image, machine=machine, timeout_s=config.here(config.boot_timeout_s))


def make_warmup(image: InstalledImage, config: Config) -> Job | None:
    """The image's warm-up as a job, if it has one. Its steps may take what a build may."""
    warmup = image.manifest.warmup
    if not warmup.steps:
        return None
    files = {path: text.encode() for path, text in warmup.files.items()}
    slow = msgspec.structs.replace(config, run_wall_s=config.build_wall_s)
    return make_plan(Snippet(files=files), image, slow, steps=warmup.steps).job


def make_standby(image: InstalledImage, config: Config) -> Job | None:
    """What stands by for a step of the image's language, as a job, if something does."""
    steps = [step for step in image.manifest.steps if step.standby]
    if not steps:
        return None
    slow = msgspec.structs.replace(config, run_wall_s=config.build_wall_s)
    job = make_plan(Snippet(files={}), image, slow, steps=[msgspec.structs.replace(step, argv=step.standby) for step in steps]).job
    started = tuple(dataclasses.replace(step, standby=True, by_standby=False, cpu_ms=0) for step in job.start.steps)
    return replace(job, start=dataclasses.replace(job.start, steps=started))


def make_plan(
    snippet: Snippet,
    image: InstalledImage,
    config: Config,
    network: NetworkConfig | None = None,
    steps: Sequence[manifest.LanguageStep] = (),
) -> Plan:
    """Put a plan together. The machine gets `network`; without `steps` the job has those of the
    language.

    Raises:
        RequestError: the snippet does not fit the language, the limits or the protocol. Nothing has
            been done by then.
    """
    content = image.manifest
    profile = _profile(snippet, content)
    files = _files(snippet, content, profile)
    options = {"time_factor": f"{config.here(1):g}", **_options(snippet, content)}
    wanted = want_machine(image, config, network)
    asked_for = steps or snippet.steps or (profile.steps if profile else content.steps)
    unknown = set(snippet.limits) - {step.name for step in asked_for}
    if unknown:
        names = ", ".join(step.name for step in asked_for)
        raise UnprocessableError(
            f"limits for the step {min(unknown)[:80]!r}, which {content.language} does not have", hint=f"its steps are {names}"
        )
    free = wanted.machine.memory - content.unpacked_size

    def make_job(steps: Sequence[Step], files: Mapping[str, bytes], **flags: bool) -> Job:
        entries = tuple(FileEntry(path, 0o644, len(data)) for path, data in files.items())
        start = Start(tuple(content.env.items()), tuple(steps), entries, **flags)
        _check(start)
        deadline_s = sum(step.wall_ms for step in steps) / 1000 + config.here(SLACK_S)
        return Job(start=start, files=tuple(files.values()), deadline_s=deadline_s, rate=RATES[wanted.machine.channel])

    limited = [_step(step, snippet, options, config, free) for step in asked_for]
    step_names = tuple(step.name for step in limited)
    if not snippet.cases:
        job = make_job(limited, files)
        return Plan(
            wanted, job, step_names, (), profile.tests if profile else "", (*snippet.collect, *(profile.collect if profile else ()))
        )
    program = asked_for[-1]
    of_cases = [_step(program, _for_case(snippet, case, program.name), options, config, free) for case in snippet.cases]
    jobs = tuple(make_job([step], {}, from_products=True) for step in of_cases)
    return Plan(wanted, make_job(limited[:-1], files, keep=True), step_names, jobs)


def _check(start: Start) -> None:
    try:
        check_start(start)
        check_fits(start, 1)
    except OversizeError as error:
        raise BodyTooLargeError(error.message, hint=error.hint) from error
    except EncodeError as error:
        raise UnprocessableError(error.message, hint=error.hint) from error


def _for_case(snippet: Snippet, case: Case, step: str) -> Snippet:
    """The snippet with what the case has of its own."""
    limits = {**snippet.limits, step: {**snippet.limits.get(step, {}), **case.limits}}
    return msgspec.structs.replace(snippet, args=snippet.args if case.args is None else case.args, limits=limits)


def _profile(snippet: Snippet, content: manifest.Manifest) -> manifest.Profile | None:
    """What is to be done with the snippet; None to run it."""
    if snippet.profile == RUN:
        return None
    if snippet.profile not in content.profiles:
        known = ", ".join((RUN, *content.profiles))
        raise UnprocessableError(f"{content.language} has no profile {snippet.profile[:80]!r}", hint=f"its profiles are {known}")
    return content.profiles[snippet.profile]


def _files(snippet: Snippet, content: manifest.Manifest, profile: manifest.Profile | None) -> dict[str, bytes]:
    files = {**snippet.files, **snippet.hidden_files}
    if snippet.source is not None:
        name = (profile.source_file if profile else "") or content.source_file
        if name in files:
            raise UnprocessableError(f'"source" and "files" both hold {name!r}', hint="give it once")
        files = {name: snippet.source, **files}
        check_paths(files)
    if profile and profile.files:
        if taken := sorted({*profile.files} & {*files}):
            raise UnprocessableError(f"the name {taken[0]!r} is taken by what runs the tests", hint="rename the file")
        files |= {path: text.encode() for path, text in profile.files.items()}
        check_paths(files)
    return files


def _options(snippet: Snippet, content: manifest.Manifest) -> dict[str, str]:
    """The value of each option of the language: the snippet's, or the default."""
    chosen = {name: option.default for name, option in content.options.items()}
    for name, value in snippet.options.items():
        if name not in content.options:
            raise UnprocessableError(
                f"options.{name[:80]}: {content.language} has no such option",
                hint=f"its options are {', '.join(content.options) or 'none'}",
            )
        option = content.options[name]
        if option.takes:
            _check_addresses(name, value)
        elif value not in option.values:
            raise UnprocessableError(
                f"options.{name} is {value[:80]!r}; {content.language} {content.version} has {', '.join(option.values)}"
            )
        chosen[name] = value
    return chosen


def _check_addresses(name: str, value: str) -> None:
    """Check an option's text of IP addresses with ports. Raises UnprocessableError."""
    addresses = value.split(",") if value else []
    if len(addresses) > MAX_ADDRESSES:
        raise UnprocessableError(f"options.{name} has {len(addresses)} addresses; at most {MAX_ADDRESSES} are wanted")
    for address in addresses:
        if not _is_address(address):
            hint = "an IP address, a colon and a port from 1 to 65535, with commas between several: 0.0.0.0:8080,[::]:8081"
            raise UnprocessableError(f"options.{name} has {address[:80]!r}, which is not an address", hint=hint)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    six = host.startswith("[") and host.endswith("]") and "%" not in host
    try:
        _ = IPv6Address(host[1:-1]) if six else IPv4Address(host)
    except AddressValueError:
        return False
    return PORT.fullmatch(port) is not None and 0 < int(port) < 65536


def _step(step: manifest.LanguageStep, snippet: Snippet, options: Mapping[str, str], config: Config, free: int) -> Step:
    """The step with its environment and its limits.

    `{name}` in an argument stands for the value of the language's option `name`, `{time_factor}`
    for how much longer everything may take on this host. A limit is the
    server's, or the manifest's, or the snippet's if that asks for less. A snippet's `env` is for
    its program; the compiler gets `build_env`.
    """
    kind = _kind(step)
    asked = snippet.limits.get(step.name, {})

    def limit(name: str) -> float:
        most = largest_limit(step, name, config, interactive=snippet.interactive)
        if name in asked and most and asked[name] > most:
            raise UnprocessableError(
                f"limits.{step.name}.{name} is {asked[name]:g}; this server allows at most {most:g}",
                hint=f"ask for less, or raise {_key_of(step, name, interactive=snippet.interactive)} in the server's configuration",
            )
        return float(asked.get(name, most))

    several = {"{args}": snippet.args, "{hidden}": tuple(snippet.hidden_files)}
    argv = [part for piece in step.argv for part in several.get(piece) or (() if piece in several else (_filled(piece, options),))]
    tty = snippet.tty if step.stdin else None
    own_env = snippet.build_env if kind == "build" else snippet.env
    memory = limit("memory") or max(MIN_STEP_MEMORY, free - KERNEL_RESERVE)
    return Step(
        name=step.name,
        argv=tuple(argv),
        cwd=step.cwd,
        env=tuple({**step.env, **own_env}.items()),
        wall_ms=max(1, _ms(config.here(limit("wall_s")))),
        cpu_ms=_ms(config.here(limit("cpu_s"))),
        memory=int(memory),
        processes=int(limit("processes")),
        output=int(limit("output")),
        file_size=config.file_size,
        stdin=step.stdin,
        columns=tty.columns if tty else 0,
        rows=tty.rows if tty else 0,
        by_standby=bool(step.standby) and not own_env and not tty,
    )


def largest_limit(step: manifest.LanguageStep, name: str, config: Config, *, interactive: bool = False) -> float:
    """The highest limit `name` (`wall_s`, `memory` …) that a snippet, or one that is `interactive`,
    may ask for; 0 if there is none. An image's time for a step is not for one that somebody talks
    to.
    """
    key = _key_of(step, name, interactive=interactive)
    fixed = None if key == "interactive_wall_s" else getattr(step, name)
    return float(fixed if fixed is not None else getattr(config, key))


def _key_of(step: manifest.LanguageStep, name: str, *, interactive: bool) -> str:
    """The key of the configuration that has a limit."""
    return "interactive_wall_s" if interactive and step.stdin and name == "wall_s" else f"{_kind(step)}_{name}"


def _kind(step: manifest.LanguageStep) -> str:
    return "build" if step.name == "build" else "run"


def _ms(seconds: float) -> int:
    """Milliseconds in a u32 (49 days). Only 0 gives 0, which means no limit."""
    return min(max(round(seconds * 1000), 1 if seconds else 0), 0xFFFF_FFFF)


def _filled(text: str, options: Mapping[str, str]) -> str:
    for name, value in options.items():
        text = text.replace(f"{{{name}}}", value)
    return text
