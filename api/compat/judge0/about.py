"""What Judge0 says of itself and of its host: `/about`, `/config_info`, `/system_info`, `/workers`
and `/statistics`.
"""

import collections
import datetime
import os
import platform
from collections.abc import Sequence
from typing import Any

from mayfly.api.compat.judge0.fields import FLAGS, RANGES
from mayfly.api.compat.judge0.submission import Status, Submission
from mayfly.api.intake import ATTEMPT_S
from mayfly.host.config import Config
from mayfly.protocol.frames import MAX_FILES_SIZE
from mayfly.runs.callbacks import DELAYS_S
from mayfly.runs.runner import Runner
from mayfly.vmm.config import NetworkBackend

VERSION = "1.13.1"
"""The contract's: clients choose their numbers of languages by it."""
MAX_BATCH = 20


def gives_network(config: Config) -> bool:
    """Whether a run can have a network here."""
    return config.network_backend is not NetworkBackend.NONE


def config_info(config: Config) -> dict[str, Any]:
    """All keys that there were in 1.13.1."""
    found: dict[str, Any] = {
        "maintenance_mode": False,
        "enable_wait_result": True,
        "enable_compiler_options": True,
        "allowed_languages_for_compile_options": [],
        "enable_command_line_arguments": True,
        "enable_submission_delete": False,
        "enable_callbacks": True,
        "callbacks_max_tries": len(DELAYS_S) + 1,
        "callbacks_timeout": ATTEMPT_S,
        "enable_additional_files": True,
        "max_queue_size": config.queue,
        "max_extract_size": MAX_FILES_SIZE // 1024,
        "enable_batched_submissions": True,
        "max_submission_batch_size": MAX_BATCH,
        "submission_cache_duration": 0.0,
        "use_docs_as_homepage": False,
        "allow_enable_per_process_and_thread_time_limit": True,
        "allow_enable_per_process_and_thread_memory_limit": True,
        "allow_enable_network": gives_network(config),
        **dict.fromkeys(FLAGS, False),
    }
    for name, limits in RANGES.items():
        kind = int if limits.whole else float
        found |= {name: kind(limits.default), f"max_{name}": kind(limits.most)}
    return found


def about() -> dict[str, str]:
    """The contract's version, and who keeps it here."""
    return {"version": VERSION, "homepage": "", "source_code": "", "maintainer": "Mayfly"}


def system_info() -> dict[str, str]:
    """As lscpu and free have it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"Architecture": platform.machine(), "CPU(s)": str(os.cpu_count()), "Mem": f"{total / (1 << 30):.1f}Gi"}


def workers(service: Runner) -> list[dict[str, Any]]:
    """One queue; its workers are the machines for which there is memory."""
    health = service.health()
    working = service.under_way - health.waiting
    room = max(0, health.memory_budget - health.memory_used) // (256 << 20)
    found = {"size": health.waiting, "available": working + room, "idle": room, "working": working, "paused": 0, "failed": 0}
    return [{"queue": VERSION, **found}]


def statistics(submissions: Sequence[Submission]) -> dict[str, Any]:
    """Numbers of the submissions that are still kept."""
    now = datetime.datetime.now(datetime.UTC)
    days = collections.Counter(one.created_at.date() for one in submissions)
    languages = collections.Counter((one.language["id"], one.language["name"]) for one in submissions)
    statuses = collections.Counter(one.status or Status.QUEUE for one in submissions)
    size = sum(one.size for one in submissions)
    dates = [now.date() - datetime.timedelta(days=back) for back in range(1, 31)]
    return {
        "created_at": now.isoformat(timespec="milliseconds"),
        "cached_until": now.isoformat(timespec="milliseconds"),
        "submissions": {
            "total": len(submissions),
            "today": days[now.date()],
            "last_30_days": {str(date): days[date] for date in dates},
        },
        "languages": [{"language": {"id": number, "name": name}, "count": count} for (number, name), count in languages.most_common()],
        "statuses": [
            {"status": {"id": int(status), "name": status.to_json()["description"]}, "count": count}
            for status, count in statuses.most_common()
        ],
        "database": {"size_pretty": f"{size // 1024} kB", "size_in_bytes": size},
    }
