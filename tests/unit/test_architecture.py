"""docs/architecture.md names files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(?:mayfly/)?((?:agent|api|guests|host|images|protocol|runs|snapshots|vmm)/[\w/]+\.(?:py|rs))`")


def test_each_file_that_it_names_exists() -> None:
    named = set(NAMED.findall((ROOT / "docs/architecture.md").read_text()))
    assert len(named) > 30
    assert {name for name in named if not (ROOT / name).exists() and not (ROOT / "mayfly" / name).exists()} == set()
