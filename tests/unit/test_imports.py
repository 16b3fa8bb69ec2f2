"""What importing costs: the zygote loads none of the server's libraries. Which package may import
which is import-linter's matter.
"""

import subprocess
import sys

HEAVY = ("aiohttp", "asyncio", "click", "yaml", "mayfly.api", "mayfly.imagegen")
UNUSED = ("ast", "dataclasses", "inspect", "locale", "random", "subprocess", "traceback")
"""2 MiB that each machine would carry."""


def test_one_host_loads_nothing_of_a_fleet() -> None:
    code = (
        "import sys, mayfly.cli.main, mayfly.cli.fleet, mayfly.cli.run, mayfly.api.app; print({'nats', 'mayfly.fleet'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_the_zygote_stays_small() -> None:
    code = f"import sys, mayfly.vmm.process.zygote, mayfly.vmm.process.child; print(sorted(set({HEAVY + UNUSED!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
