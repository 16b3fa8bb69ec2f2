"""The HTTP status of each error, by its stable code (mayfly/errors.py)."""

from collections.abc import Mapping

from mayfly.errors import MayflyError

STATUS: Mapping[str, int] = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_language": 404,
    "unknown_run": 404,
    "not_running": 409,
    "run_not_interactive": 409,
    "stdin_taken": 409,
    "stdin_ended": 409,
    "run_ended": 410,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_value": 422,
    "idempotency_key_reused": 422,
    "busy": 429,
    "key_limit": 429,
    **dict.fromkeys(
        (
            "stopping",
            "host_failed",
            "network_failed",
            "zygote_lost",
            "server_lost",
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
            "snapshot_not_found",
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
