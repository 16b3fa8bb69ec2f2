"""What processes have cost, for benchmarks and tests."""

import os
from pathlib import Path


def processor_s(pid: int) -> float:
    """The processor time of a process that is not reaped yet, in seconds (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
