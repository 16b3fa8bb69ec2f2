"""Hostile snippets end as they may, and the driver says so when they do not."""

from pathlib import Path

import msgspec
import pytest

from mayfly.client import Result
from mayfly.imagegen.languages import load_language
from scripts.attack import main
from scripts.attack.snippets import ATTACKS, PYTHON, THROUGH, Attack
from tests.kit.api_server import Served, serving

HARMLESS = Attack(name="harmless", tries="print", source="echo 'mount: refused (EPERM)'", language="toy", limits={})
WORKS = Attack(name="works", tries="get through", source=f"echo '{THROUGH}: mount'", language="toy", limits={})
ENDS_OTHERWISE = Attack(name="fails", tries="end otherwise", source="exit 3", language="toy", limits={})
NOT_TAKEN = Attack(name="not taken", tries="limit another step", source="", language="toy", limits={"link": {"wall_s": 1}})
ABSENT = Attack(name="absent", tries="run", source="", language="cobol")


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.kit.api_fakes import install_toys

    install_toys(monkeypatch, tmp_path)


def test_what_becomes_of_attacks_is_told_beside_a_neighbour(tmp_path: Path) -> None:
    async def scenario(served: Served) -> tuple[list[float], list[main.Row], dict[str, str]]:
        attacks = (HARMLESS, WORKS, ENDS_OTHERWISE, NOT_TAKEN, ABSENT)
        return await main.play(served.service.config.socket, attacks, minutes=5, source="echo 42", language="toy")

    alone, rows, skipped = serving(tmp_path, scenario)
    assert [(row.end, bool(row.wrong)) for row in rows] == [("ok", False), ("ok", True), ("failed", True), ("not taken", True)]
    assert len(alone) == main.ALONE
    assert all(row.beside for row in rows)
    assert list(skipped) == ["absent"]
    page = main.report(alone, rows, skipped, "")
    assert "4 snippets ran, 1 of them ended as they must" in page
    assert f"**wrong:** {THROUGH}: mount" in page
    assert "1 attempts refused" in page


def test_a_neighbour_that_is_answered_wrongly_is_an_error(tmp_path: Path) -> None:
    async def scenario(served: Served) -> None:
        await main.play(served.service.config.socket, (), minutes=5, source="echo 41", language="toy")

    with pytest.raises(main.WrongError, match="41"):
        serving(tmp_path, scenario)


def test_a_limit_is_told_by_its_name() -> None:
    result = msgspec.convert(
        {"id": "x", "language": "toy", "version": "1", "state": "ended", "status": "limit", "steps": [{"step": "run", "limit": "memory"}]},
        Result,
    )
    assert main.end_of(result) == "limit: memory"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_each_limit_is_of_a_step_of_the_language(attack: Attack) -> None:
    assert attack.limits.keys() <= {step.name for step in load_language(attack.language).steps}


@pytest.mark.parametrize("attack", PYTHON, ids=lambda attack: attack.name)
def test_each_snippet_is_a_program(attack: Attack) -> None:
    compile(attack.source, attack.name, "exec")


def test_each_attack_has_a_name_of_its_own_and_never_ends_in_an_error() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert not [attack.name for attack in ATTACKS if "error" in attack.ends]
