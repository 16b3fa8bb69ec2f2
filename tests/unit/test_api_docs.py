"""docs/api.md has every key, route, code and status that there is."""

from pathlib import Path

import pytest

from api.config import FIELDS
from api.problems import TABLE
from api.record import Mode
from api.routes import ROUTES
from api.runs import Status

TEXT = (Path(__file__).parents[2] / "docs/api.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        *(f"| `{name}` |" for name in FIELDS),
        *(f"{route.method} {route.path.replace('{id}', 'ID')}" for route in ROUTES),
        *(f"`{code}`" for _, _, code in TABLE),
        *(f"`{status}`" for status in Status),
        *(f"`{mode}`" for mode in Mode),
    ],
)
def test_it_is_described(words: str) -> None:
    assert words in TEXT
