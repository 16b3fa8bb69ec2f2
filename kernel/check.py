"""Name every option of a kernel's .config that differs from what Mayfly's guests need.

Usage: python kernel/check.py CONFIG ARCH

Exit status: 0 all options are right, 1 some are not, 2 wrong use.
"""

import re
import sys
from pathlib import Path

OPTION = re.compile(r"^(CONFIG_\w+)=(.*)$")
HERE = Path(__file__).resolve().parent


def options(text: str) -> dict[str, str]:
    """Option to value. An option that is not set has no entry, or `n`."""
    found = (OPTION.match(line) for line in text.splitlines())
    return {match[1]: match[2] for match in found if match}


def complaints(config: dict[str, str], needed: dict[str, str]) -> list[str]:
    """One line for each option in which `config` differs from what is needed."""
    lines = []
    for name, value in needed.items():
        have = config.get(name, "n")
        if have == value:
            continue
        if value == "n":
            lines.append(f"{name} is {have}; it must not be set")
        elif have == "n":
            lines.append(f"{name} is not set; {value} is needed")
        else:
            lines.append(f"{name} is {have}; {value} is needed")
    return lines


def main(arguments: list[str]) -> int:
    """Check one file against common.config and the architecture's fragment, which overrides it."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    config, arch = Path(arguments[0]), arguments[1]
    fragments = [HERE / "common.config", HERE / f"{arch}.config"]
    try:
        needed = {name: value for path in fragments for name, value in options(path.read_text()).items()}
        wrong = complaints(options(config.read_text()), needed)
    except (OSError, UnicodeDecodeError) as error:
        print(f"kernel/check: {error}", file=sys.stderr)
        return 2
    for line in wrong:
        print(f"{config}: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
