"""What is on the command line: flags into dataclasses, the experiment that comes first, tables for people."""

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from pixtok import config
from pixtok.errors import InputError

T = TypeVar("T")
_STYLE = (tyro.conf.PositionalMetavarFromFieldName,)


def parse(cls: type[T], args: Sequence[str], prog: str, **default: Any) -> T:
    """Parse flags into a dataclass.  What tyro says of an error in a box becomes one line: InputError.

    With `return_unknown_args=True`: (the dataclass, what it does not know).
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(cls, args=list(args), prog=prog, use_underscores=True, config=_STYLE, **default)
    except SystemExit as stop:
        if not stop.code:  # --help
            print(out.getvalue(), end="")
            raise
        raise InputError(_one_line(err.getvalue() or out.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    rule = re.compile(r"^[\s─━\-╭╮╰╯│|]*$")
    lines = [line.strip(" │|") for line in box.splitlines() if not rule.match(line)]
    text = " ".join(lines[1:])  # after the title
    message = re.split(r"Argument helptext:|Perhaps you meant:|For full helptext|Full helptext", text)[0].strip()
    unknown = re.match(r"Unrecognized options: (\S+?)(,|\s|$)", message)
    if unknown:
        near = re.search(r"Perhaps you meant:\s+(--[\w.\-]+)", text)
        hint = f"; did you mean {near[1]}?" if near else ""
        message = f"unknown option {unknown[1]}{hint}"
    missing = re.match(r"Missing from .+?: (\S+)", message)  # what is between may be wrapped
    if missing:
        message = f"{missing[1]} is missing"
    message = re.sub(
        r"no type matching \{None\}\|(\w+) could be instantiated from \['?(.*?)'?\].*", r"\2 is no \1", message
    )
    return f"{prog}: {message} (`{prog} --help` lists all options)"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def experiment(
    verb: str, function: Callable[..., Any], args: Sequence[str]
) -> tuple[config.Experiment, list[str]] | None:
    """The experiment that comes first, and the arguments that are not for its file.

    None where help was asked for, and given.  Raises InputError.
    """
    if args and args[0] in ("-h", "--help"):
        print(f"usage: pixtok {verb} {function.__doc__}\n\n`pixtok {verb} EXPERIMENT.py --help` lists all its settings")
        return None
    if not args or args[0].startswith("-"):
        raise InputError(f"pixtok {verb} wants an experiment file first, like experiments/demo.py")
    file, left, options = config.File(args[0]), [], dict[str, Any]()
    given = iter(args[1:])
    for word in given:
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in file.options:
            left.append(word)
            continue
        kind, value = type(file.options[name]), value if has_value else next(given, "--")
        if value.startswith("--"):
            raise InputError(f"pixtok {verb} {args[0]}: --{name} wants a value")
        try:
            options[name] = kind(value)
        except ValueError:
            raise InputError(f"pixtok {verb} {args[0]}: --{name} must be {kind.__name__}; got {value!r}") from None
    if file.options and {"-h", "--help"} & set(left):
        print(f"options of {args[0]} itself:\n")
        print(table([[f"  --{name}", f"(default: {value})"] for name, value in file.options.items()]), end="\n\n")
    return file.make(**options), left
