"""How a fleet's work lies in its engine: streams and their consumers, in the words of JetStream."""

import hashlib
from typing import Any

from mayfly.fleet.message import GROUP

NS = 1_000_000_000
STREAM = "RUNS_"
MOST_WORK = 100_000
"""Messages in a stream; more are refused."""
WORK_AGE_S = 4 * 86_400
"""How long work is kept, waiting or under way: three attempts of the longest step that a
configuration permits, and some time. What is done is removed.
"""
DUPLICATES_S = 120
"""How long work's id keeps the same from being stored again when it is done; until then its subject
does.
"""
MAX_WAITING = 8192
"""Pulls that wait at a consumer; a large fleet has more than the server's default of 512."""


def stream_of(arch: str) -> str:
    """The stream of the architecture."""
    return f"{STREAM}{arch}"


def subject_of(arch: str, lang: str, message_id: str) -> str:
    """Where work waits: a place of its own, so that it is there once."""
    return f"run.{arch}.{lang}.{hashlib.blake2s(message_id.encode(), digest_size=16).hexdigest()}"


def stream_config(arch: str, replicas: int) -> dict[str, Any]:
    """The stream of the architecture, on so many servers."""
    return {
        "name": stream_of(arch),
        "subjects": [f"run.{arch}.*.*"],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "max_msgs": MOST_WORK,
        "max_age": int(WORK_AGE_S * NS),
        "duplicate_window": int(DUPLICATES_S * NS),
        "max_consumers": -1,
    }


def consumer_config(arch: str, lang: str, ack_wait_s: float) -> dict[str, Any]:
    """Its consumer of the language, for hosts that may be silent for so long."""
    return {
        "durable_name": f"{arch}_{lang}",
        "filter_subject": f"run.{arch}.{lang}.*",
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * NS),
        "max_deliver": -1,
        "max_ack_pending": MOST_WORK,
        "max_waiting": MAX_WAITING,
        "deliver_policy": "all",
        "replay_policy": "instant",
        "priority_groups": [GROUP],
        "priority_policy": "prioritized",
    }
