"""Markdown to HTML: headings, paragraphs, lists, quotes, code, emphasis and links.

Text comes back as HTML. JSON may have `markdown`; without it the function renders a document of its
own, and answers with the number of letters.
"""

import html
import re
from collections.abc import Iterator
from typing import Any

HEADING = re.compile(r"(#{1,6}) +(.+)")
ITEM = re.compile(r"([-*]|\d+\.) +(.+)")
INLINE = (
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\*(.+?)\*"), r"<em>\1</em>"),
    (re.compile(r"\[([^]]+)\]\((https?://[^)\s]+)\)"), r'<a href="\2">\1</a>'),
)
CODE = re.compile(r"`([^`]+)`")
SAMPLE = """# A function
It **stays loaded** and answers *many* requests, as [the page](https://example.com/functions) says:

1. Its code is imported once, `import json` and all.
2. A snapshot is taken.

> Each guest is a clone.

- no start of Python
- no import

```
print("<hello>")
```
"""


def handle(event: Any) -> Any:
    """Render the event."""
    if isinstance(event, str):
        return render(event)
    event = event if isinstance(event, dict) else {}
    return {**event, "letters": len(render(event.get("markdown", SAMPLE * 20)))}


def render(text: str) -> str:
    """A Markdown text as HTML."""
    return "\n".join(blocks(text.splitlines()))


def blocks(lines: list[str]) -> Iterator[str]:
    """The blocks of a text, each as HTML."""
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        end = at + 1
        if line.startswith("```"):
            while end < len(lines) and not lines[end].startswith("```"):
                end += 1
            yield f"<pre><code>{html.escape(chr(10).join(lines[at + 1 : end]))}</code></pre>"
            end += 1
        elif heading := HEADING.fullmatch(line):
            level = len(heading[1])
            yield f"<h{level}>{inline(heading[2])}</h{level}>"
        elif item := ITEM.fullmatch(line):
            kind = "ol" if item[1][0].isdigit() else "ul"
            items = [inline(item[2])]
            while end < len(lines) and (item := ITEM.fullmatch(lines[end].strip())) and item[1][0].isdigit() == (kind == "ol"):
                items.append(inline(item[2]))
                end += 1
            yield f"<{kind}>{''.join(f'<li>{text}</li>' for text in items)}</{kind}>"
        elif line:
            while end < len(lines) and lines[end].strip() and not starts_block(lines[end]):
                end += 1
            text = " ".join(part.strip() for part in lines[at:end])
            yield f"<blockquote>{inline(text[1:].strip())}</blockquote>" if line.startswith(">") else f"<p>{inline(text)}</p>"
        at = end


def starts_block(line: str) -> bool:
    """Whether a line ends the paragraph above it."""
    line = line.strip()
    return line.startswith(("```", ">")) or bool(HEADING.fullmatch(line) or ITEM.fullmatch(line))


def inline(text: str) -> str:
    """Emphasis, links and code within a line; what is in backticks stays as it is."""
    parts = CODE.split(text)
    for index, part in enumerate(parts):
        part = html.escape(part, quote=False)
        if index % 2:
            parts[index] = f"<code>{part}</code>"
            continue
        for pattern, replacement in INLINE:
            part = pattern.sub(replacement, part)
        parts[index] = part
    return "".join(parts)
