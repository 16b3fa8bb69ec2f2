"""What an image has that its language's prepare steps make, made by this host's own programs."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mayfly.imagegen.languages import load_language

PREPARED = {"java", "javascript", "typescript"}
"""Languages whose steps need it here."""


@functools.cache
def prepared_here(language: str) -> Mapping[str, str]:
    """The folders here of those in the image, which stay as long as this process; none for most
    languages.
    """
    if language not in PREPARED:
        return {}
    prepare = load_language(language).prepare
    places = {place: tempfile.mkdtemp(prefix=f"prepared-{language}-") for place in prepare.collect}
    for folder in places.values():
        atexit.register(shutil.rmtree, folder)
        Path(folder).chmod(0o755)
    for step in prepare.steps:
        with tempfile.TemporaryDirectory() as work:
            argv = [here(part, places) for part in step.argv]
            subprocess.run(argv, cwd=work, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return places


def here(text: str, places: Mapping[str, str]) -> str:
    """A step's text with these folders in it."""
    for place, folder in places.items():
        text = text.replace(place, folder)
    return text
