"""The real agent as an ordinary process, with a vmm process's report around it: `real_agent.py
CHANNEL_FD REPORT_FD EXECUTABLE UID`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(channel: int, report_fd: int, executable: str, uid: str) -> None:
    with os.fdopen(report_fd, "w") as report, tempfile.TemporaryDirectory(prefix="real-agent-") as folder:
        Path(folder).chmod(0o755)
        report.write(json.dumps({"event": "running", "phases": {}}) + "\n")
        report.flush()
        command = [executable, "--fd", str(channel), "--work", f"{folder}/work", *(["--uid", uid] if os.geteuid() == 0 else [])]
        agent = subprocess.Popen(command, pass_fds=[channel])
        os.close(channel)
        agent.wait()
        ended: dict[str, object] = {"event": "ended", "reason": "channel-closed", "error": None, "console": "", "exits": {}, "phases": {}}
        report.write(json.dumps(ended) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
