"""An image's own agent in a chroot of the image, for root: a snippet is run as in a machine, but
without its limits of memory and processes, for which the agent has no cgroups there.
"""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mayfly.host.config import Config
from mayfly.host.plan import Plan, make_plan
from mayfly.host.snippet import Snippet
from mayfly.images.manifest import Manifest
from mayfly.images.store import InstalledImage
from mayfly.protocol import frames as p
from tests.kit.agent_process import AgentChannel, Result

UID = 61_000
"""Whom steps run as."""
_DEVICES = (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9))
_WITHIN = (
    'mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/dev" && ln -s /proc/self/fd "$0/dev/fd"'
    + "".join(f' && mknod -m 666 "$0/dev/{name}" c 1 {minor}' for name, minor in _DEVICES)
    + ' && exec "$@"'
)


@contextlib.contextmanager
def agent_in(root: Path) -> Iterator[AgentChannel]:
    """The agent of the image that is unpacked in `root`, with empty folders to write to."""
    for name, mode, owner in (("work", 0o755, UID), ("tmp", 0o1777, 0)):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
        (root / name).chmod(mode)
        os.chown(root / name, owner, owner)
    ours, theirs = socket.socketpair()
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", _WITHIN, str(root), "/usr/sbin/chroot", str(root)]
    with ours, theirs:
        command += ["/init", "--fd", str(theirs.fileno()), "--work", "/work", "--uid", str(UID)]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL):
            theirs.close()
            channel = AgentChannel(ours)
            try:
                channel.expect(p.Hello, run=0)
                yield channel
            finally:
                ours.close()  # or the agent, which is waited for, would wait for more


def run_in(root: Path, manifest: Manifest, snippet: Snippet) -> tuple[Plan, Result]:
    """What comes of a snippet, with what was planned for it."""
    plan = make_plan(snippet, InstalledImage(root, manifest), Config())
    steps = tuple(dataclasses.replace(step, memory=0, processes=0) for step in plan.job.start.steps)
    with agent_in(root) as agent:
        agent.send(dataclasses.replace(plan.job.start, steps=steps))
        for index, data in enumerate(plan.job.files):
            for at in range(0, len(data), p.MAX_FILE_CHUNK):
                agent.send(p.File(index, at, data[at : at + p.MAX_FILE_CHUNK]))
        agent.send(p.Begin(), p.StdinEof())
        return plan, agent.result()
