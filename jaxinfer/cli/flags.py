"""A command's own flags: defined in groups, parsed by absl, shown as help. Knows no command."""

import dataclasses
import difflib
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl


class UsageError(Exception):
    """The command line itself cannot be understood: exit code 2."""


class _Parser(absl.ArgumentParser):
    """Reads one value with `read`; a failure says what was needed."""

    def __init__(self, read: Callable[[str], Any], needs: str):
        self._read, self._needs = read, needs

    def parse(self, argument):
        if not isinstance(argument, str):
            return argument  # a default
        try:
            return self._read(argument)
        except ValueError as error:
            raise ValueError(f"needs {self._needs}, got {argument!r}") from error


def _ids(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _bias(text: str) -> tuple[int, float]:
    token, colon, value = text.rpartition(":")
    if not colon:
        raise ValueError(text)
    return int(token), float(value)


def _counts(text: str) -> tuple[int, ...]:
    found = _ids(text)
    if min(found) < 1:
        raise ValueError(text)
    return tuple(dict.fromkeys(found))


TEXT = absl.ArgumentParser()  # as it stands
INTEGER = _Parser(int, "an integer")
REAL = _Parser(float, "a number")
IDS = _Parser(_ids, "token ids separated by commas, like 1,2,3")
COUNTS = _Parser(_counts, "positive integers separated by commas, like 1,16,64")
BIAS = _Parser(_bias, "a token id and a bias, like 42:-5")


class Flags:
    """The flags of one command. Each `define` method adds one to the group named last."""

    def __init__(self):
        self.values = absl.FlagValues()
        self.values.set_gnu_getopt(True)
        self._groups: dict[str, list[tuple[str, str]]] = {}
        self.group("Help")
        self.switch("help", "show this page", short="h")
        self.switch("traceback", "on an error, show where in the program it arose")
        self._groups = {"": [], **self._groups}

    def group(self, title: str) -> None:
        """Begin a group, or go on with it."""
        self._lines = self._groups.setdefault(title, [])

    def text(self, name: str, help: str, default: str | None = None, form: str = "TEXT") -> None:
        absl.DEFINE_string(name, default, help, flag_values=self.values)
        self._show(name, form, help, default)

    def switch(self, name: str, help: str, short: str | None = None) -> None:
        absl.DEFINE_boolean(name, False, help, short_name=short, flag_values=self.values)
        self._show(name, "", help, None)

    def choice(
        self, name: str, help: str, among: Sequence[str], default: str | None = None
    ) -> None:
        absl.DEFINE_enum(name, default, list(among), help, flag_values=self.values)
        self._show(name, "|".join(among), help, default)

    def one(
        self, name: str, parser: _Parser, help: str, default: Any = None, form: str = "N"
    ) -> None:
        """A flag with a value that `parser` reads."""
        absl.DEFINE(parser, name, default, help, flag_values=self.values)
        self._show(name, form, help, default)

    def many(self, name: str, parser: absl.ArgumentParser, help: str, form: str = "TEXT") -> None:
        """A flag that may be given several times."""
        absl.DEFINE_multi(
            parser, absl.ArgumentSerializer(), name, [], help, flag_values=self.values
        )
        self._show(name, form, help + " (repeatable)", None)

    def _show(self, name: str, form: str, help: str, default: Any) -> None:
        shown = f"--{name}={form}" if form else f"--{name}"
        self._lines.append(
            (shown, help if default in (None, ()) else f"{help} (default: {default})")
        )

    def parse(self, argv: Sequence[str], positional: Sequence[str]) -> absl.FlagValues:
        """Read a command's arguments; the flags in `positional` may also be given bare, in that
        order.

        UsageError: an unknown flag, a flag without its value, too many arguments. ValueError: a
        value it cannot be.
        """
        try:
            rest = self.values(["jaxinfer", *argv])[1:]
        except absl.UnrecognizedFlagError as error:
            raise UsageError(
                f"unknown flag --{error.flagname}{self._nearest(error.flagname)}"
            ) from error
        except absl.IllegalFlagValueError as error:
            raise ValueError(str(error)) from error
        except absl.Error as error:
            raise UsageError(str(error)) from error
        if len(rest) > len(positional):
            raise UsageError(
                f"unexpected argument {rest[len(positional)]!r}; quote a text with spaces"
            )
        for name, value in zip(positional, rest, strict=False):
            if self.values[name].present:
                raise UsageError(f"got {value!r} and --{name}; give one of them")
            self.values[name].parse(value)
        return self.values

    def _nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self.values), n=1)
        return f"; did you mean --{near[0]}?" if near else ""

    def help(self) -> str:
        """Every flag with its meaning, by group."""
        width = min(shutil.get_terminal_size().columns, 100)
        column = 30
        lines = []
        for title, flags in self._groups.items():
            if not flags or title == "Help":
                continue
            lines += ["", f"{title}:"]
            for shown, help in flags:
                body = textwrap.wrap(help, max(width - column, 30))
                head = f"  {shown}"
                if len(head) >= column - 1:
                    lines.append(head)
                    head = ""
                lines.append(f"{head:<{column}}{body[0]}")
                lines += [" " * column + line for line in body[1:]]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Command:
    """One word of the command line.

    description and examples make its help; positional: flags that may be given without their name;
    define adds its flags; run does the work.
    """

    name: str
    summary: str
    description: str
    examples: Sequence[str]
    define: Callable[[Flags], None]
    run: Callable[[absl.FlagValues], None]
    positional: Sequence[str] = ()

    def flags(self) -> Flags:
        flags = Flags()
        self.define(flags)
        return flags

    def help(self) -> str:
        """The command's page."""
        bare = "".join(f" [{name.upper()}]" for name in self.positional)
        lines = [
            f"jaxinfer {self.name}: {self.summary}",
            "",
            *textwrap.wrap(self.description, 100),
            "",
        ]
        lines += [f"Usage: jaxinfer {self.name}{bare} [--flag=value ...]", "", "Examples:"]
        lines += [f"  {example}" for example in self.examples]
        return "\n".join(lines) + "\n" + self.flags().help() + "\n"
