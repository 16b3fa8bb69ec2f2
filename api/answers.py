"""The answers' bodies that are not a run's own (mayfly/runs/result.py), and the HTTP status of each
error by its stable code (mayfly/errors.py). The types below are also the schemas in openapi.json.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from mayfly.errors import MayflyError
from mayfly.host.snippet import Mode
from mayfly.images.store import InstalledImage
from mayfly.runs.result import Problem, RunResult


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted run."""

    id: str
    language: str
    version: str
    output: Annotated[Mode, Meta(description="what the output socket gives")]
    output_socket: Annotated[str | None, Meta(description="null over TCP")]


class BatchedRun(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted run of a batch, or why it was refused."""

    id: str | UnsetType = UNSET
    language: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    output: Mode | UnsetType = UNSET
    output_socket: str | UnsetType | None = UNSET
    error: Problem | UnsetType = UNSET


class Batched(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a batch, in its order."""

    runs: Sequence[BatchedRun]


class Forked(msgspec.Struct, frozen=True, kw_only=True):
    """The clones of a run."""

    clones: Sequence[Started]


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """The runs that were asked for, in that order; null for one that is not there."""

    runs: Sequence[RunResult | None]


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a run."""

    name: str
    parent: str | None
    run: str
    memory_bytes: int


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """An installed image."""

    language: str
    version: str
    compiler: Annotated[str, Meta(description="what the compiler says of itself; empty if no machine asked it")]
    default: Annotated[bool, Meta(description="whether the language alone names it")]
    architecture: str
    extensions: Sequence[str]
    source_file: str
    source_files: Annotated[Mapping[str, str], Meta(description="in place of `source_file`, by the extension of a file")]
    target: Annotated[str, Meta(description="what its programs are compiled to; empty: machine code")]
    steps: Sequence[str]
    profiles: Annotated[Sequence[str], Meta(description="what else than running it can be done with a snippet")]
    options: Annotated[Mapping[str, Sequence[str]], Meta(description="the values of each option")]
    memory: Annotated[int, Meta(description="bytes that a machine has at least")]
    image: str

    @classmethod
    def of(cls, image: InstalledImage) -> "Language":
        """The image as clients see it."""
        manifest = image.manifest
        return cls(
            language=manifest.language,
            version=manifest.version,
            compiler=manifest.compiler,
            default=image.is_default,
            architecture=manifest.arch,
            extensions=manifest.extensions,
            source_file=manifest.source_file,
            source_files=manifest.source_files,
            target=manifest.target,
            steps=[step.name for step in manifest.steps],
            profiles=list(manifest.profiles),
            options={name: option.values for name, option in manifest.options.items()},
            memory=manifest.memory,
            image=manifest.source.reference,
        )


class Languages(msgspec.Struct, frozen=True, kw_only=True):
    """What can be run."""

    languages: Sequence[Language]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server takes runs and, for those whom it knows, what it has to do: runs that wait
    for room, machines that wait for a run, bytes of memory of all machines.
    """

    status: Literal["ok", "draining"]
    waiting: int | UnsetType = UNSET
    idle: int | UnsetType = UNSET
    memory_used: int | UnsetType = UNSET
    memory_budget: int | UnsetType = UNSET
    quorum: Annotated[bool, Meta(description="of a fleet: whether most of its servers are there")] | UnsetType = UNSET


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """What serves. `time_factor` is what all times are multiplied by on this host."""

    version: str
    protocol: int
    architecture: str
    time_factor: float


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer from 400 on."""

    error: Problem
    request_id: Annotated[str, Meta(description="as in the header X-Request-Id and in the logs")]


def answer(body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer that has `body` as JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json", charset="utf-8")


STATUS: Mapping[str, int] = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_language": 404,
    "unknown_run": 404,
    "unknown_function": 404,
    "unknown_request": 404,
    "snapshot_not_found": 404,
    "not_running": 409,
    "not_checkpointable": 409,
    "not_movable": 409,
    "not_forkable": 409,
    "run_not_interactive": 409,
    "stdin_taken": 409,
    "stdin_ended": 409,
    "run_ended": 410,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_value": 422,
    "idempotency_key_reused": 422,
    "function_failed": 422,
    "busy": 429,
    "key_limit": 429,
    "queue_full": 429,
    "function_guest_failed": 502,
    "move_failed": 502,
    "function_crashed": 502,
    "function_timeout": 504,
    "resource_exhausted": 503,
    **dict.fromkeys(
        (
            "stopping",
            "host_failed",
            "network_failed",
            "zygote_lost",
            "server_lost",
            "fleet_failed",
            "kvm_failed",
            "kvm_unavailable",
            "machine_failed",
            "boot_failed",
            "guest_failed",
            "image_broken",
            "image_not_found",
            "registry_failed",
            "layer_broken",
            "snapshot_failed",
            "bad_configuration",
        ),
        503,
    ),
    **dict.fromkeys(("schema_violated", "malformed", "collect_failed", "not_encodable", "oversize", "internal"), 500),
}
"""Those of 503 are the host's: as an answer they mean that it can serve nobody. A run that has
begun carries them in its result instead, so that no snippet causes a 5xx.
"""


def status_of(error: MayflyError) -> int:
    """The status of an answer that carries the error."""
    return STATUS[error.code]
