"""The `mayfly` command with machines that are ordinary processes; the first argument is the agents'
fault, or `-`. FAKE_AGENT is the path of the real agent, if that is to be them.
"""

import os
import sys
from pathlib import Path

import mayfly.guests.zygote
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
cli.main()
