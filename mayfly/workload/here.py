"""What answers a replay without a server: functions in guests of the replaying process."""

from mayfly.functions.lines import RequestLine
from mayfly.functions.openloop import Reply, in_process
from mayfly.functions.service import Functions
from mayfly.workload.replay import Counters


class HereTarget:
    """Functions of this process."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._invoke = in_process(functions)

    async def send(self, request: RequestLine) -> Reply:
        """As `Target`."""
        return await self._invoke(request)

    async def counters(self) -> Counters | None:
        """As `Target`."""
        found = self._functions.statistics()
        return Counters(self._functions.memory_budget, found["number of vms created"], found["number of evictions"])
