"""docs/api.md has every key, route, code and status that there is."""

from pathlib import Path

import pytest

from mayfly.api.answers import STATUS
from mayfly.api.routes import ROUTES
from mayfly.guests.outcome import Status
from mayfly.host.config import FIELDS
from mayfly.host.snippet import Mode

TEXT = (Path(__file__).parents[3] / "docs/api.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        *(f"| `{name}` |" for name in FIELDS),
        *(f"{route.method} {route.path.format(id='ID', name='NAME')}" for route in ROUTES),
        *(f"`{code}`" for code in STATUS),
        *(f"`{status}`" for status in Status),
        *(f"`{mode}`" for mode in Mode),
    ],
)
def test_it_is_described(words: str) -> None:
    assert words in TEXT
