"""`--package serde@1 --features derive`: what stands behind a package is of that one."""

import itertools
from collections.abc import Iterable, Iterator

import click


class FeaturesCommand(click.Command):
    """A command with the options --package and --features. It sees one: `serde@1[derive]`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click has no order between options."""
        return super().parse_args(ctx, joined(args))


def joined(arguments: Iterable[str]) -> list[str]:
    """The arguments, with the features as part of the packages before them.

    Raises:
        click.UsageError: there is no package before some.
    """
    found: list[str] = []
    package = None
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--features":
            found.append(argument)
            if name == "--package":
                found += [] if equals else list(itertools.islice(rest, 1))
                package = len(found) - 1
            continue
        if package is None:
            raise click.UsageError("--features stands behind the --package that has them")
        features = ",".join((value if equals else _after(rest)).replace(",", " ").split())
        before = found[package]
        found[package] = f"{before[:-1]},{features}]" if before.endswith("]") else f"{before}[{features}]"
    return found


def _after(rest: Iterator[str]) -> str:
    for argument in rest:
        return argument
    raise click.UsageError("Option '--features' requires an argument.")
