"""What is wanted of a machine."""

from pathlib import Path

import pytest

from mayfly.guests.job import Wanted
from mayfly.images.store import Images
from mayfly.protocol.frames import Start, Step
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.config import Layer, MachineConfig
from tests.kit.api_fakes import install_toys

CHAIN = [Path("/base"), Path("/diff"), Path("/more")]


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Wanted:
    install_toys(monkeypatch, tmp_path)
    return Wanted(image=Images().find("toy"), machine=MachineConfig(kernel="k", memory=64 * MIB), timeout_s=30.0)


def layers(wanted: Wanted) -> list[tuple[str, bool, bool]]:
    return [(layer.folder, layer.copied, layer.working_set) for layer in wanted.machine.restore]


def test_layers_are_mapped_and_the_last_ones_working_set_is_loaded(wanted: Wanted) -> None:
    assert layers(wanted.restored_from(CHAIN)) == [("/base", False, False), ("/diff", False, False), ("/more", False, True)]
    assert wanted.restored_from([]) == wanted


def test_a_base_and_a_loaded_function_have_their_working_set_before_they_run(wanted: Wanted) -> None:
    """But a machine that is to be saved has none."""
    assert [(layer.working_set, layer.eager) for layer in wanted.restored_from(CHAIN[:1]).machine.restore] == [(False, True)]
    loaded = replace(wanted, loaded=Start((), (Step("function", ("shim",), function=True),), ()))
    restored = loaded.restored_from(CHAIN)
    assert [(layer.working_set, layer.eager) for layer in restored.machine.restore] == [(False, False), (False, False), (False, True)]
    plain = tuple(Layer(folder=str(folder)) for folder in CHAIN)
    assert loaded.restored_from(CHAIN, load_ws=False).machine.restore == restored.to_be_saved().machine.restore == plain


def test_base_and_diffs_are_copied_apart(wanted: Wanted) -> None:
    assert [layer.copied for layer in wanted.restored_from(CHAIN, copy_base=True).machine.restore] == [True, False, False]
    assert [layer.copied for layer in wanted.restored_from(CHAIN, copy_diff=True).machine.restore] == [False, True, True]
    plain = tuple(Layer(folder=str(folder)) for folder in CHAIN)
    assert wanted.restored_from(CHAIN, load_ws=False).machine.restore == plain
    assert wanted.restored_from(CHAIN).to_be_saved().machine.restore == plain
