"""docs/architecture.md and docs/threat-model.md name files that exist; each layer has tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(?:mayfly/)?((?:agent|api|guests|host|images|protocol|runs|snapshots|vmm)/[\w/]+\.(?:py|rs))`")


def test_each_file_that_it_names_exists() -> None:
    named = set(NAMED.findall((ROOT / "docs/architecture.md").read_text()))
    assert len(named) > 30
    assert {name for name in named if not (ROOT / name).exists() and not (ROOT / "mayfly" / name).exists()} == set()


def test_each_layer_of_the_threat_model_has_tests_that_exist() -> None:
    model = (ROOT / "docs/threat-model.md").read_text()
    parts = model.split("\n## ")
    layers, tests = (re.findall(r"^\| (?!layer|---)([^|]+) \|", part, re.MULTILINE) for part in (parts[0], parts[-1]))
    assert layers == tests
    named = set(re.findall(r"`((?:tests|kernel)/[\w/]+\.py)`", model))
    assert {name for name in named if not (ROOT / name).exists()} == set()
