"""The regression guard: which counts fail it, and what is counted."""

from collections.abc import Callable
from typing import Any

import pytest

from mayfly.protocol import frames
from scripts.bench.quick import compare, instructions


def counts(python: str = "3.11", **machines: int) -> dict[str, Any]:
    return {"python": python, "kernel": "6.12", "of python": {"instructions": 1000}, "of machines": machines}


@pytest.mark.parametrize(
    ("found", "worse"),
    [
        (counts(exits=100), []),
        (counts(exits=110), []),
        (counts(exits=111), ["exits"]),
        (counts(exits=1), []),
        (counts(), []),
        ({**counts(exits=111), "kernel": "6.13"}, []),
        ({**counts("3.12"), "of python": {"instructions": 2000}}, []),
        ({**counts(exits=111), "of python": {"instructions": 1101}}, ["instructions", "exits"]),
    ],
)
def test_a_tenth_more_than_released_fails(found: dict[str, Any], worse: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(counts(exits=100), found) == worse
    assert capsys.readouterr().out.count("TOO MANY") == len(worse)


def test_instructions_are_those_of_one_folder() -> None:
    def act(times: int) -> Callable[[], None]:
        def pack() -> None:
            for _ in range(times):
                frames.encode_frame(frames.Done(), 1)

        return pack

    one, two = (instructions(act(times), "mayfly/protocol") for times in (1, 2))
    assert (two, instructions(act(1), "mayfly/nowhere")) == (2 * one, 0)
    assert one > 10
