"""The `mayfly` command with machines that are ordinary processes; the first argument is the agents'
fault, or `-`. FAKE_AGENT is the path of the real agent, if that is to be them; FAKE_CLOCK that of a
file with the seconds by which the wall clock is ahead, if it is there. FAKE_QUICK has times of a
fleet's members, as JSON.
"""

import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mayfly.guests.zygote
import mayfly.vmm.kvm.prctl
from mayfly.cli import main as cli
from tests.kit.api_fakes import FakeZygote
from tests.kit.fake_nursery import ForkingZygote

fault = sys.argv.pop(1).removeprefix("-")
executable = Path(os.environ["FAKE_AGENT"]) if "FAKE_AGENT" in os.environ else None


kind = FakeZygote if executable else ForkingZygote


class Zygote(kind):  # type: ignore[misc,valid-type]
    @classmethod
    def start(cls) -> "Zygote":
        return cls(fault, executable)

    @classmethod
    def fork(cls) -> "Zygote":
        return cls(fault, executable)


mayfly.guests.zygote.Zygote = Zygote  # type: ignore[misc]
mayfly.vmm.kvm.prctl.prctl = lambda *_: None  # tests of an ordinary user look into a server's /proc


def ahead(file: Path, now: Callable[[], float] = time.time) -> float:
    try:
        return now() + float(file.read_text())
    except (OSError, ValueError):  # it is not there, or being written
        return now()


if "FAKE_CLOCK" in os.environ:
    time.time = functools.partial(ahead, Path(os.environ["FAKE_CLOCK"]))
if "FAKE_QUICK" in os.environ and {"--join", "gateway", "fleet"} & {*sys.argv}:
    for setting, seconds in json.loads(os.environ["FAKE_QUICK"]).items():
        module, _, name = setting.partition(".")
        setattr(importlib.import_module(f"mayfly.fleet.{module}"), name, seconds)
cli.main()
