"""What is owed is given back, the last one first, whatever fails."""

import pytest

from mayfly.vmm.resources import Resources


class Closed:
    def __init__(self, order: list[str]) -> None:
        self._order = order

    def close(self) -> None:
        self._order.append("closed")


def test_the_last_one_is_given_back_first_and_once() -> None:
    order: list[str] = []
    with Resources() as resources:
        resources.callback(order.append, "first")
        assert isinstance(resources.own(Closed(order)), Closed)
        resources.callback(order.append, "last")
    resources.close()
    assert order == ["last", "closed", "first"]


def test_what_is_kept_is_given_back_later() -> None:
    order: list[str] = []
    with Resources() as resources:
        resources.callback(order.append, "kept")
        kept = resources.keep()
    assert not order
    kept.close()
    assert order == ["kept"]


def test_what_comes_behind_a_failure_is_given_back_too() -> None:
    def fail() -> None:
        raise OSError("of no use")

    order: list[str] = []
    resources = Resources()
    resources.callback(order.append, "behind")
    resources.callback(fail)
    with pytest.raises(OSError, match="of no use"):
        resources.close()
    assert order == ["behind"]
