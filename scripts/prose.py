"""Check that the documents' prose is at most 100 columns wide, or wrap it.

Usage: python -m scripts.prose [--wrap]

Tables, code, headings and what a tool has written may be wider.
"""

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
GENERATED = {"docs/test-report.md", "docs/intel-report.md"}
VERBATIM = re.compile(r"\s*(\||#|!\[|<)| {4,}\S|\t")
"""Begins a line that is not prose: a table, a heading, a picture, HTML, an indented code block."""
BULLET = re.compile(r"\s*([-*]|\d+\.) ")


def paragraphs(text: str) -> Iterator[tuple[bool, list[str]]]:
    """The text in pieces of whole lines, and of each whether it is prose."""
    code = False
    prose: list[str] = []
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        verbatim = code or fence or not line.strip() or (not prose and bool(VERBATIM.match(line)))
        code ^= fence
        if prose and (verbatim or BULLET.match(line) or line.lstrip().startswith("|")):
            yield True, prose
            prose = []
            verbatim = verbatim or line.lstrip().startswith("|")
        if verbatim:
            yield False, [line]
        else:
            prose.append(line)
    if prose:
        yield True, prose


def wrapped(lines: list[str]) -> list[str]:
    """A paragraph or a list's item, wrapped."""
    bullet = BULLET.match(lines[0])
    first = bullet[0] if bullet else re.match(r" *", lines[0])[0]  # type: ignore[index]  # it matches anything
    words = " ".join([lines[0][len(first) :], *lines[1:]]).split()
    # A line must not begin with what Markdown takes for a list or a heading.
    text = re.sub(r" (?=([-*+#]|\d+\.) )", "\N{NO-BREAK SPACE}", " ".join(words))
    made = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in made]


def main(arguments: list[str]) -> int:
    """Check every Markdown file of the project, or wrap it; 1 if a line is too long."""
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    status = 0
    for path in (ROOT / name for name in names if name not in GENERATED):
        text = path.read_text()
        if arguments == ["--wrap"]:
            pieces = (wrapped(part) if prose and max(map(len, part)) > WIDTH else part for prose, part in paragraphs(text))
            path.write_text("".join(f"{line}\n" for piece in pieces for line in piece))
            continue
        number = 0
        for prose, part in paragraphs(text):
            for line in part:
                number += 1
                if prose and len(line) > WIDTH and " " in line[: WIDTH + 1].strip():
                    print(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns; prose has at most {WIDTH}")
                    status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
