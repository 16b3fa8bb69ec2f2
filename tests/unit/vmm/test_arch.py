"""Both architectures give common code the same names with the same signatures."""

import ast
from pathlib import Path

import pytest

import mayfly.vmm

VMM = Path(mayfly.vmm.__file__).parent
MODULES = ("boot", "cpu", "hardware", "layout", "state")


def used(module: str) -> set[str]:
    """The names of an architecture's module that common code uses."""
    names: set[str] = set()
    for path in (*VMM.rglob("*.py"), *(VMM.parent / "guests").glob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {
            f"arch.{module}" if name.name == "arch" else name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module in ("mayfly.vmm", "mayfly.vmm.arch")
            for name in node.names
        } & {module, f"arch.{module}"}
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
        names |= {node.attr for node in nodes if ast.unparse(node.value) in imported}
    return names


def defined(arch: str, module: str) -> dict[str, str]:
    """Names at a module's top, of functions with signatures, but for a controller's type."""
    found: dict[str, str] = {}
    for node in ast.parse((VMM / "arch" / arch / f"{module}.py").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for argument in node.args.args:
                argument.annotation = None if argument.arg == "controller" else argument.annotation
            own = node.name in ("create_interrupts", "save") or node.returns is None  # a type of its own
            found[node.name] = ast.unparse(node.args) + ("" if own else f" -> {ast.unparse(node.returns)}")  # type: ignore[arg-type]
        elif isinstance(node, ast.ClassDef):
            found[node.name] = ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: "" for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_both_define_what_common_code_uses(module: str) -> None:
    names = used(module)
    assert names
    x86, arm = defined("x86_64", module), defined("aarch64", module)
    assert {name: x86.get(name, "missing") for name in names} == {name: arm.get(name, "missing") for name in names}
    assert names <= x86.keys()
