"""Remove what a language does not need, by globs.

A glob is matched against whole paths below the root: `*` and `?` stop at a slash, `**` does not,
`{a,b}` is either. A match takes what is beneath it along. A glob after `!` takes paths back in; the
last glob that matches decides.
"""

import re
from collections import Counter
from collections.abc import Sequence

from mayfly.imagegen.rootfs.tree import Node, Tree

DEPTH = 3
"""usr/lib/rustlib, usr/share/go-1.24: deep enough to tell where the bytes are."""


def translate(glob: str) -> str:
    """The regular expression of a glob, for a match of a path or of one of its parents."""
    if "[" in glob:
        raise ValueError(f"glob {glob!r} has a [, which is not one of ours")
    parts = []
    depth = 0
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\{|\}|,|[^*?{},]+", glob):
        match token:
            case "**/":
                parts.append("(?:.*/)?")
            case "**":
                parts.append(".*")
            case "*":
                parts.append("[^/]*")
            case "?":
                parts.append("[^/]")
            case "{":
                depth += 1
                parts.append("(?:")
            case "}" if depth:
                depth -= 1
                parts.append(")")
            case "," if depth:
                parts.append("|")
            case _:
                parts.append(re.escape(token))
    if depth:
        raise ValueError(f"glob {glob!r} has an unclosed brace")
    return f"{''.join(parts)}(?:/.*)?"


class Pruner:
    """Decides for a path whether the globs take it out."""

    def __init__(self, globs: Sequence[str]) -> None:
        self._rules = [
            (not glob.startswith("!"), re.compile(translate(glob.removeprefix("!").strip("/")).encode(), re.DOTALL)) for glob in globs
        ]

    def __call__(self, path: bytes) -> bool:
        """Whether `path` goes."""
        for removes, pattern in reversed(self._rules):
            if pattern.fullmatch(path):
                return removes
        return False


def prune(tree: Tree, globs: Sequence[str]) -> Counter[str]:
    """Remove from `tree` what the globs match; directories that a glob matched go once they are
    empty.

    Returns the bytes removed, by directory. A file with several names counts once for each that
    goes.
    """
    pruner = Pruner(globs)
    removed: Counter[str] = Counter()

    def visit(node: Node, prefix: bytes) -> None:
        for name, child in list(node.children.items()):
            path = prefix + name
            if child.is_dir:
                visit(child, path + b"/")
            if not child.children and pruner(path):
                removed[directory_of(path)] += child.inode.size
                del node.children[name]

    visit(tree.root, b"")
    return removed


def sizes(tree: Tree) -> Counter[str]:
    """The bytes of all files, by directory; hard links count once."""
    found: Counter[str] = Counter()
    seen = set()
    for path, node in tree.walk():
        if id(node.inode) not in seen:
            seen.add(id(node.inode))
            found[directory_of(path)] += node.inode.size
    return found


def directory_of(path: bytes) -> str:
    """The directory that a file is counted for: the one it is in, but at most DEPTH deep."""
    return "/" + b"/".join(path.split(b"/")[:-1][:DEPTH]).decode("utf-8", "replace")
