"""`jaxinfer COMMAND ...`: finds the command, reads its flags, turns every outcome into an exit
code.

0: done. 1: a wrong value, file or model. 2: a command line that cannot be understood. 130: Ctrl-C.
141: nobody reads.
"""

import difflib
import io
import os
import sys
from collections.abc import Sequence

from jaxinfer.cli import (
    bench,
    chat,
    convert,
    generate,
    info,
    perplexity,
    plan,
    quality,
    quantize,
    score,
    serve,
)
from jaxinfer.cli.flags import Command, UsageError
from jaxinfer.version import __version__

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        *(
            module.COMMAND
            for module in (
                generate,
                chat,
                serve,
                score,
                perplexity,
                quality,
                info,
                plan,
                convert,
                quantize,
            )
        ),
        *bench.COMMANDS,
    )
}
ERRORS = (
    ValueError,
    OSError,
    RuntimeError,
    MemoryError,
)  # what input, files, devices and memory can cause


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: the process's own). Returns the exit
    code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a model's characters
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _leave_stdout()
        return 141


def _dispatch(argv: list[str]) -> int:
    argv = _join(argv)
    word = argv[0] if argv else ""
    if word in ("--version", "version"):
        print(__version__)
    elif word in ("--help", "-h", "-help") or argv == ["help"]:
        print(help(), end="")
    elif not argv:
        print(help(), end="", file=sys.stderr)
        return 2
    elif word == "help":
        print(_find(_join(argv[1:])[0]).help(), end="")
    elif group := [name for name in COMMANDS if name.startswith(f"{word} ")]:
        if argv[1:] not in (["--help"], ["-h"]):
            words = ", ".join(name.removeprefix(f"{word} ") for name in group)
            raise UsageError(f"{word} needs one of {words} (jaxinfer {word} --help tells more)")
        print(_list(group))
    else:
        return _execute(_find(word), argv[1:])
    return 0


def _join(argv: list[str]) -> list[str]:
    """A command of two words as one: ["bench", "decode", ...] -> ["bench decode", ...]."""
    name = " ".join(argv[:2])
    return [name, *argv[2:]] if name in COMMANDS else argv


def _list(names: Sequence[str]) -> str:
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(f"  {name:<{width}}{COMMANDS[name].summary}" for name in names)


def _execute(command: Command, argv: list[str]) -> int:
    flags = command.flags()
    try:
        values = flags.parse(argv, command.positional)
        if values.help:
            print(command.help(), end="")
        else:
            command.run(values)
    except UsageError as error:
        raise UsageError(
            f"{command.name}: {error}; jaxinfer {command.name} --help shows its flags"
        ) from error
    except BrokenPipeError:
        raise
    except ERRORS as error:
        if flags.values.is_parsed() and flags.values.traceback:
            raise
        return _complain(error, 1)
    return 0


def _find(word: str) -> Command:
    if word in COMMANDS:
        return COMMANDS[word]
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = (
        f"; did you mean {near[0]!r}?"
        if near
        else "; flags come after a command"
        if word.startswith("-")
        else ""
    )
    raise UsageError(f"unknown command {word!r}{hint} (jaxinfer --help lists them)")


def _complain(error: BaseException, code: int) -> int:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    text = " ".join(text.split()) or type(error).__name__
    print(f"jaxinfer: {text}", file=sys.stderr)
    return code


def _leave_stdout() -> None:
    """Nobody reads our output any more: let what is buffered go nowhere, so that closing it does
    not complain.
    """
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no file behind it
        return


def help() -> str:
    """The page of the program."""
    return f"""jaxinfer: language-model inference in JAX

Usage: jaxinfer COMMAND [--flag=value ...]

Commands:
{_list(list(COMMANDS))}

Start here:
  jaxinfer generate --prompt "def fibonacci(n):"
  jaxinfer generate --help      a command's flags, with examples
  jaxinfer --version

Without --model, the small model that ships with jaxinfer is used. With --json, commands write one JSON object to
stdout and everything else to stderr. Exit codes: 0 done, 1 a wrong value, file or model, 2 a wrong command line.
"""
