"""Write the manual pages: python -m scripts.man FOLDER

mayfly(1) is made of the commands' own help, mayfly.yaml(5) of the configuration's table of keys.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import mayfly
from mayfly.cli.main import cli
from mayfly.host.config import CHOICES, FIELDS, Config

FILES = """.SH FILES
.TP
.I $XDG_CONFIG_HOME/mayfly/config.yaml
The configuration, see
.BR mayfly.yaml (5);
/etc/mayfly/config.yaml of the systemd unit.
.TP
.I $XDG_DATA_HOME/mayfly
Images, kernels, snapshots, API keys; /var/lib/mayfly of the unit.
.TP
.I $XDG_CACHE_HOME/mayfly
What is made again when it is missing; /var/cache/mayfly of the unit.
.TP
.I $XDG_RUNTIME_DIR/mayfly/api.sock
The socket of the API; /run/mayfly/api.sock of the unit.
"""


def roff(text: str) -> str:
    """A paragraph, escaped: no backslash, and no request at the begin of a line."""
    words = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    words = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", words)
    return f"\\&{words}" if words[:1] in ".'" else words


def head(title: str, section: int, name: str, what: str) -> str:
    return f'.TH {title.upper()} {section} "" "Mayfly {mayfly.__version__}" "Mayfly"\n.SH NAME\n{name} \\- {roff(what)}\n'


def commands(group: click.Group, context: click.Context, path: str) -> Iterator[tuple[str, click.Command, click.Context]]:
    """All that can be called, by what is typed."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from commands(command, inner, f"{path} {name}")
        else:
            yield f"{path} {name}", command, inner


def describe(path: str, command: click.Command, context: click.Context) -> str:
    lines = [f".SS {roff(path)} {roff(' '.join(command.collect_usage_pieces(context)))}"]
    lines += [paragraph for text in (command.help or "").split("\n\n") for paragraph in (roff(text), ".PP")][:-1]
    of_configuration = False
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and parameter.name in FIELDS and parameter.help == FIELDS[parameter.name].meaning:
            of_configuration = True
        elif record is not None and record[1]:
            lines += [".TP", f"\\fB{roff(record[0])}\\fR", roff(record[1])]
    if of_configuration:
        lines += [".PP", "Besides, keys of\n.BR mayfly.yaml (5)\nas options, which override it."]
    return "\n".join(lines) + "\n"


def mayfly_1() -> str:
    context = click.Context(cli, info_name="mayfly")
    page = head("mayfly", 1, "mayfly", "run untrusted code, each piece in a virtual machine of its own")
    page += ".SH SYNOPSIS\n.B mayfly\n.I COMMAND\n.RI [ OPTIONS ] ...\n.SH DESCRIPTION\n" + roff(cli.help or "") + "\n.SH COMMANDS\n"
    page += "".join(describe(*each) for each in commands(cli, context, "mayfly"))
    return page + FILES + ".SH SEE ALSO\n.BR mayfly.yaml (5)\n"


def mayfly_yaml_5() -> str:
    page = head("mayfly.yaml", 5, "mayfly.yaml", "configuration of mayfly")
    page += ".SH DESCRIPTION\n" + roff(
        "config.yaml is a mapping of keys to values. Every key has a default, and is also an option of `mayfly serve`."
    )
    page += "\nTimes are in seconds, sizes in bytes.\n.SH KEYS\n"
    usual = Config()
    for name, field in FIELDS.items():
        value = getattr(usual, name)
        said = ", ".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
        if name in ("socket", "kernel"):
            said = ""  # of whoever makes this page
        choices = f" One of: {', '.join(CHOICES[field.type])}." if field.type in CHOICES else ""
        page += f".TP\n.B {roff(name)}\n{roff(field.meaning[:1].upper() + field.meaning[1:])}.{roff(choices) and ' ' + roff(choices)}"
        page += f"\nDefault: {roff(said)}\n" if said else "\n"
    return page + FILES + ".SH SEE ALSO\n.BR mayfly (1)\n"


PAGES = {"mayfly.1": mayfly_1, "mayfly.yaml.5": mayfly_yaml_5}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page())


if __name__ == "__main__":
    main()
