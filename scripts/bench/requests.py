"""Measure what a request costs besides the guest's work.

Usage: python -m scripts.bench.requests measure FILE [--requests N] [--clients N]
       python -m scripts.bench.requests plot FILE PICTURE

A server of its own process serves POST /run. Its machines are played by another process: the
agents answer at once, and no vmm process is forked, so that what is measured is the API, placing
and the session with the guest. Each run has a new machine, restored from the language's base as far
as the server knows. First one client sends one request after another, then CLIENTS do; the server's
processor time is what Linux has counted for it.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly import paths
from mayfly.api.app import Join, on_host, serve
from mayfly.guests.zygote import Zygote
from mayfly.host.config import Config
from mayfly.host.plan import want_machine
from mayfly.images.store import Images
from mayfly.protocol import frames
from mayfly.protocol.report import End, Ended, Running, encode, pack, unpack
from mayfly.protocol.spawning import MESSAGE_LIMIT, Reaped, Signal, Spawn
from mayfly.snapshots import store
from mayfly.snapshots.making import base_name
from mayfly.units import MIB
from mayfly.vmm.snapshot import FILES
from tests.kit.api_fakes import MARKER, install_toys
from tests.kit.processor_time import processor_s

REQUESTS = 1000
CLIENTS = 64
WARM_UP = 50
WAIT_S = 60.0
BODY = {"source": "echo hello", "language": "toy"}
EXIT = frames.Exit(0, frames.ExitHow.EXITED, 0, frames.Limit.NONE, 1000, 1000, 1 << 20, (False, False))


class PlayedZygote(Zygote):
    """Has its machines from the process that plays the agents."""

    def close(self) -> None:
        self._control.close()


class PlayedAgent(asyncio.Protocol):
    """Says hello when it is resumed, and answers each run at once, or after the seconds that its
    source is a number of.
    """

    def __init__(self, machine: int, report: int, control: int, zygote: socket.socket) -> None:
        self.machine, self.report, self.control, self.zygote = machine, report, control, zygote
        self.frames = frames.FrameReader(frames.FROM_HOST)
        self.steps: tuple[frames.Step, ...] = ()
        self.source = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a stream's is one)
        self.transport = transport
        os.write(self.report, encode(Running(phases={"process": 0.001})))

    def data_received(self, data: bytes) -> None:
        for frame in self.frames.feed(data):
            match frame.message:
                case frames.Resumed():
                    self.say(frames.Hello(frames.PROTOCOL_VERSION, "played", platform.machine(), 1000, MARKER), 0)
                case frames.Start(steps=steps):
                    self.steps = steps
                    self.say(frames.Credit(1 << 16), frame.run)
                case frames.File(data=data):
                    self.source += data
                case frames.Begin() if self.source.isdigit():
                    asyncio.get_running_loop().call_later(int(self.source), self.answer, frame.run)
                case frames.Begin():
                    self.answer(frame.run)

    def answer(self, run: int) -> None:
        """All steps, one after another."""
        if self.transport.is_closing():
            return
        for index, step in enumerate(self.steps):
            self.say(frames.Stage(index, step.name), run)
            if step.name == "run":
                self.say(frames.Stdout(b"hello\n"), run)
            self.say(dataclasses.replace(EXIT, step=index), run)
        self.say(frames.Done(), run)

    def say(self, message: frames.Message, run: int) -> None:
        self.transport.write(frames.encode_frame(message, run))

    def connection_lost(self, error: Exception | None) -> None:
        os.write(self.report, encode(Ended(reason=End.CHANNEL_CLOSED, exits={"total": 81})))
        os.close(self.report)
        os.close(self.control)
        self.zygote.send(pack(Reaped(machine=self.machine, status=0)))


async def play(zygote: socket.socket) -> None:
    """Play the agents until the server goes."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    playing: dict[int, asyncio.Task[Any]] = {}

    def take() -> None:
        data, fds, _, _ = socket.recv_fds(zygote, MESSAGE_LIMIT, 3)
        if not data:
            over.set()
            return
        message: Spawn | Signal = unpack(Spawn | Signal, data)
        if isinstance(message, Signal):
            return  # the machine's channel ends as well, and so does the agent
        channel, report, control = fds
        agent = PlayedAgent(message.machine, report, control, zygote)
        playing[message.machine] = loop.create_task(loop.connect_accepted_socket(lambda: agent, socket.socket(fileno=channel)))
        playing[message.machine].add_done_callback(lambda _: playing.pop(message.machine))

    loop.add_reader(zygote, take)
    await over.wait()


def save_base(config: Config) -> None:
    """Have a base of the language, without anything in it."""
    config.kernel.touch()
    wanted = want_machine(Images().find(BODY["language"]), config)
    paths.snapshots_dir().mkdir(parents=True)
    name = base_name(wanted)
    with store.replacing(name) as part:
        for each in FILES:
            (part / each).touch()
        store.complete(part, name=name, image=wanted.image, machine=wanted.machine, parent=None, memory_bytes=0)


def be_server(folder: Path, join: Join | None = None) -> None:
    """Serve in `folder` until SIGTERM, also those whom it shall `join`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not (pid := os.fork()):
        ours.close()
        asyncio.run(play(theirs))
        os._exit(0)
    theirs.close()
    with pytest.MonkeyPatch.context() as patch:
        install_toys(patch, folder)
        config = Config(
            socket=folder / "api.sock",
            kernel=folder / "vmlinux",
            memory_budget=CLIENTS * 128 * MIB,
            queue=4 * CLIENTS,
            time_factor=1.0,
        )
        save_base(config)
        asyncio.run(serve(config, functools.partial(on_host, zygote=lambda: PlayedZygote(0, ours), join=join)))
    os.waitpid(pid, 0)


async def ask(client: aiohttp.ClientSession) -> float:
    """One request; seconds."""
    began = time.perf_counter()
    async with client.post("http://mayfly/run", json=BODY) as answer:
        result = await answer.json()
    if result.get("status") != "ok":
        raise RuntimeError(f"a run failed: {result}")
    return time.perf_counter() - began


async def load(path: Path, server: int, clients: int, requests: int) -> dict[str, Any]:
    """Send requests from some clients at a time; what they took, in milliseconds."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path), limit=clients)) as client:
        for _ in range(WARM_UP):
            await ask(client)
        left = iter(range(requests))
        times: list[float] = []

        async def one() -> None:
            for _ in left:
                times.append(await ask(client))

        began, before = time.perf_counter(), processor_s(server)
        await asyncio.gather(*(one() for _ in range(clients)))
        seconds, spent = time.perf_counter() - began, processor_s(server) - before
    ranks = statistics.quantiles(times, n=100)
    return {
        "clients": clients,
        "requests": requests,
        "server_processor_ms": round(1000 * spent / requests, 3),
        "requests_a_second": round(requests / seconds, 1),
        "p50_ms": round(1000 * statistics.median(times), 3),
        "p99_ms": round(1000 * ranks[98], 3),
        "ms": [round(1000 * each, 3) for each in sorted(times)],
    }


def measure(requests: int, clients: int) -> dict[str, Any]:
    """Both loads against one server."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([sys.executable, "-m", "scripts.bench.requests", "serve", name], stderr=log)
            try:
                deadline = time.monotonic() + WAIT_S
                while not (folder / "api.sock").exists():
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
                    time.sleep(0.01)
                return {
                    "machine": platform.machine(),
                    "processors": os.cpu_count(),
                    "loads": [asyncio.run(load(folder / "api.sock", server.pid, each, requests)) for each in (1, clients)],
                }
            finally:
                server.terminate()
                server.wait(WAIT_S)


def plot(found: dict[str, Any], picture: Path) -> None:
    """Draw the share of requests that were answered within a time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for each in found["loads"]:
        share = [100 * (index + 1) / len(each["ms"]) for index in range(len(each["ms"]))]
        label = f"{each['clients']} client{'s' if each['clients'] > 1 else ''}: {each['requests_a_second']:.0f} a second"
        axes.plot(each["ms"], share, label=label)
    axes.set(xscale="log", xlabel="milliseconds", ylabel="% answered", title="POST /run without the guest's work")
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main(arguments: list[str]) -> int:
    """Measure, or plot."""
    parser = argparse.ArgumentParser(prog="bench.requests", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("file", type=Path)
    measuring.add_argument("--requests", type=int, default=REQUESTS)
    measuring.add_argument("--clients", type=int, default=CLIENTS)
    plotting = commands.add_parser("plot")
    plotting.add_argument("file", type=Path)
    plotting.add_argument("picture", type=Path)
    serving = commands.add_parser("serve")
    serving.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "serve":
        be_server(options.folder)
    elif options.command == "plot":
        plot(json.loads(options.file.read_text()), options.picture)
    else:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        found = measure(options.requests, options.clients)
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        for each in found["loads"]:
            print({name: value for name, value in each.items() if name != "ms"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
