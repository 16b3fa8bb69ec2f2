"""Functions of the toy language, whose guests are ordinary processes: each request is answered with
its payload, or as the payload says (fake_agent.py).
"""

import platform
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mayfly import paths
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec
from mayfly.images import manifest
from tests.kit.api_fakes import install_toys


def install_echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The toys, of which `toy` loads functions, and a kernel that nobody boots."""
    install_toys(monkeypatch, tmp_path)
    let_toys_load_functions(tmp_path)


def let_toys_load_functions(tmp_path: Path) -> None:
    """Have the image of `toy` load functions."""
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    path = paths.image_dir("toy", platform.machine()) / "manifest.json"
    build = manifest.LanguageStep(name="build", argv=("sh", "-n", "handler.toy"))
    run = manifest.LanguageStep(name="function", argv=("sh", "handler.toy"))
    function = manifest.Function(files={}, steps=(build, run), source_file="handler.toy", entry="handle")
    path.write_text(msgspec.structs.replace(manifest.load(path.parent), function=function).to_json())


async def create_function(functions: Functions, folder: Path, name: str, **fields: Any) -> None:
    """Create a function that answers with what it is asked."""
    code = folder / f"{name}.toy"
    code.write_text("true")
    await functions.create(FunctionSpec(name=name, language="toy", code=str(code), **fields))
