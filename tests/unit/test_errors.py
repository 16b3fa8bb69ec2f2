"""The tree of errors: each class has a code of its own, and survives a wire."""

import json
import re
from collections import Counter
from typing import Any

import pytest

from mayfly.api.answers import STATUS
from mayfly.errors import (
    BusyError,
    ConfigError,
    FunctionCrashedError,
    FunctionFailedError,
    GuestError,
    KvmError,
    KvmUnavailableError,
    MayflyError,
    ResourceExhaustedError,
    from_wire,
    kinds,
    to_wire,
)


def test_each_class_has_a_code_of_its_own_in_snake_case() -> None:
    ours = [kind for kind in kinds() if kind.__module__.startswith("mayfly.") and not kind.__name__.startswith("_")]
    codes = Counter(vars(kind).get("code") for kind in ours)
    assert [code for code, count in codes.items() if count > 1 or not code] == []
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(_[a-z]+)*", str(code))] == []


def test_each_code_has_one_status() -> None:
    assert set(STATUS) == {kind.code for kind in kinds() if kind.__module__.startswith("mayfly.")}


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("memory is 3", hint="give more"),
        KvmError("KVM_RUN", 14),
        KvmUnavailableError("opening /dev/kvm", 2, hint="load the module"),
        GuestError("it crashed", console="Kernel panic"),
        BusyError("no room", retry_after_s=7),
        FunctionCrashedError("it exited", console="Kernel panic", log="Traceback"),
        FunctionFailedError("it was not built", output="error: expected ;"),
        ResourceExhaustedError("no memory", resource="memory", retry_after_s=2),
    ],
)
def test_an_error_survives_a_wire(error: MayflyError) -> None:
    arrived = from_wire(json.loads(json.dumps(to_wire(error))))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize(
    "change",
    [
        {"code": "MayflyError"},
        {"code": None},
        {"message": 3},
        {"hint": None},
        {"errno": True},
        {"errno": "2"},
        {"console": ""},
        {"ioctl": b""},
    ],
)
def test_an_error_that_is_not_whole_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="error"):
        from_wire({**to_wire(KvmError("KVM_RUN", 14)), **change})
    with pytest.raises(ValueError, match="no error has"):
        from_wire({})
