"""A run that is over as Piston shows it."""

import signal
from typing import Any

from mayfly.api.compat.images import is_interpreted
from mayfly.api.compat.piston.jobs import runtime_of
from mayfly.api.compat.stages import StageResult, stages_of, text
from mayfly.images.store import InstalledImage
from mayfly.runs.run import Run


def result_of(run: Run, image: InstalledImage) -> dict[str, Any]:
    """The answer to a request whose run is over."""
    stages = stages_of(run)
    found: dict[str, Any] = {}
    if stages and len(run.outcome.step_names) > 1 and not is_interpreted(image):
        found["compile"] = _stage(stages[0])
    found["run"] = _stage(stages[-1]) if stages else {**_NOTHING}
    if run.outcome.error is not None:
        found["run"] |= {"code": None, "signal": None, "status": "XX", "message": run.outcome.error.message}
    runtime = runtime_of(image)
    return {**found, "language": runtime["language"], "version": runtime["version"]}


def _stage(stage: StageResult) -> dict[str, Any]:
    status, message, code, number = stage.ended
    if status not in ("TO", "SG") and any(stage.exit.cut):
        status, message = ("OL", "stdout length exceeded") if stage.exit.cut[0] else ("EL", "stderr length exceeded")
        code, number = None, signal.SIGKILL
    return {
        "stdout": text(stage.stdout),
        "stderr": text(stage.stderr),
        "output": text(stage.output),
        "code": code,
        "signal": signal_name(number),
        "message": message or None,
        "status": status or None,
        "cpu_time": round(stage.exit.cpu_us / 1000),
        "wall_time": round(stage.exit.wall_us / 1000),
        "memory": stage.exit.peak_memory,
    }


def signal_name(number: int | None) -> str | None:
    """`SIGKILL` and the like."""
    if number is None:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("stdout", "stderr", "output"), ""),
    **dict.fromkeys(("code", "signal", "message", "status", "cpu_time", "wall_time", "memory")),
}
