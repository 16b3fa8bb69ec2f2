"""The `mayfly` command with machines that are ordinary processes; the first argument is the agents'
fault, or `-`.
"""

import sys

import mayfly.vmm.process.zygote
from mayfly.cli import main as cli
from tests.kit.api_fakes import FakeZygote

fault = sys.argv.pop(1).removeprefix("-")


class Zygote(FakeZygote):
    @classmethod
    def start(cls) -> "Zygote":
        return cls(fault)

    @classmethod
    def fork(cls) -> "Zygote":
        return cls(fault)


mayfly.vmm.process.zygote.Zygote = Zygote  # type: ignore[assignment,misc]
cli.main()
