"""The real agent as an ordinary process, with a vmm process's report around it: `real_agent.py
CHANNEL_FD REPORT_FD CONTROL_FD EXECUTABLE UID`. Nobody answers at the control socket.
"""

import os
import subprocess
import sys
from pathlib import Path

from mayfly.protocol.report import End, Ended, Running, encode
from tests.kit.agent_groups import folder, remove_left


def main(channel: int, report: int, executable: str, uid: str) -> None:
    with folder("real") as place:
        Path(place).chmod(0o755)
        os.write(report, encode(Running(phases={})))
        command = [executable, "--fd", str(channel), "--work", f"{place}/work", *(["--uid", uid] if os.geteuid() == 0 else [])]
        remove_left()
        agent = subprocess.Popen(command, pass_fds=[channel])
        os.close(channel)
        agent.wait()
        os.write(report, encode(Ended(reason=End.CHANNEL_CLOSED)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4], sys.argv[5])
