"""An assistant's text as events, while it grows.

The events, joined, do not depend on the pieces in which the text comes; no part of a marker is ever
shown. What begins as a call and turns out to be none is text.
"""

import dataclasses
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from jaxinfer.toolcalls.call_scanner import CallScanner
from jaxinfer.toolcalls.formats import Format, Markers

_BLANK = " \t\r\n"
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
_ARGS = "[ARGS]"


@dataclass(frozen=True)
class Text:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """More of what comes before the answer."""

    text: str


@dataclass(frozen=True)
class Call:
    """Call `index` of the answer, 0 for the first, begins."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


Event = Text | Reasoning | Call | Arguments


class Reader:
    """One answer.

    Args:
      format: how calls are written; None: there are none.
      names: tools that may be called. A call without markers counts only if it names one.
      reasoning: markers of the section that may come first; None: there is none.
      reasons: the text begins within that section (the prompt ends with its marker).
    """

    def __init__(
        self,
        format: Format | None = None,
        names: Collection[str] = (),
        reasoning: Markers | None = None,
        *,
        reasons: bool = False,
    ):
        self._format, self._names, self._markers = format, frozenset(names), reasoning
        self._rest = ""  # not decided yet
        self._tried = ""  # of a call that may turn out to be text
        self._scanner: CallScanner | None = None
        self._calls = 0
        self._begun = False  # the current call's name was shown
        self._answered = False  # some text was shown
        self._trimming = True  # blanks at the beginning of a section
        self._marked = self._listed = False  # the calls stand behind a marker, in a list
        self._final = False
        self._events: list[Event] = []
        self._state: Callable[[], bool] = self._start
        if reasons and reasoning is not None:
            self._state = self._reason

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._calls

    def push(self, text: str) -> list[Event]:
        """What `text` adds."""
        self._rest += text
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """What is left at the end of the text."""
        self._final = True
        return self.push("")

    # States: each reads from the rest; true: another look is worth it.

    def _start(self) -> bool:
        """Before anything but blanks."""
        if self._markers is None:
            self._state = self._answer
            return True
        body = self._rest.lstrip(_BLANK)
        begin = self._markers.begin
        if body.startswith(begin):
            self._rest, self._state = body[len(begin) :], self._reason
            return True
        if not self._final and begin.startswith(body):
            return False
        self._state, self._trimming = self._answer, False
        return True

    def _reason(self) -> bool:
        assert self._markers is not None
        if self._trimming:
            self._rest = self._rest.lstrip(_BLANK)
            self._trimming = not self._rest
        end = self._markers.end
        at = self._rest.find(end)
        if at >= 0:
            self._emit(Reasoning(self._rest[:at].rstrip(_BLANK)))
            self._rest, self._state = self._rest[at + len(end) :], self._answer
            self._trimming = True
            return True
        kept = len(self._rest) if self._final else _safe(self._rest, end)
        self._emit(Reasoning(self._rest[:kept]))
        self._rest = self._rest[kept:]
        return False

    def _answer(self) -> bool:
        """Text, until a call begins."""
        if self._markers is not None and self._trimming:
            self._rest = self._rest.lstrip(_BLANK)
            self._trimming = not self._rest
        if self._format is None:
            self._say(len(self._rest))
            return False
        body = self._rest.lstrip(_BLANK)
        first = body[:1]
        if self._format.bare and not self._answered and not self._calls:
            if not first and not self._final:
                return False
            if first == "{" or (first == "[" and self._format.listed):
                return self._enter(len(self._rest) - len(body), marked=False)
        begin = self._format.begin
        at = self._rest.find(begin) if begin else -1
        if at >= 0:
            self._say(len(self._rest[:at].rstrip(_BLANK)))
            return self._enter(self._rest.find(begin) + len(begin), marked=True)
        kept = len(self._rest) if self._final else _safe(self._rest, begin)
        if self._calls and not self._rest[:kept].strip(_BLANK):
            kept = 0
            self._rest = "" if self._final else self._rest
        self._say(kept)
        return False

    def _enter(self, length: int, *, marked: bool) -> bool:
        """A call may begin behind so much of the rest."""
        self._tried, self._marked, self._listed = "", marked, False
        self._try(length)
        self._state = self._open
        return True

    def _try(self, length: int) -> None:
        """So much of the rest belongs to what may be a call."""
        self._tried += self._rest[:length]
        self._rest = self._rest[length:]

    def _open(self) -> bool:
        """At what may be a list, an object, or a name."""
        assert self._format is not None
        body = self._rest.lstrip(_BLANK)
        if not body:
            return self._fall_back() if self._final else False
        if body[0] == "[" and self._format.listed:
            self._listed = True
            self._try(len(self._rest) - len(body) + 1)
        elif body[0] != "{" and self._format.named:
            return self._named(body)
        return self._next_call()

    def _named(self, body: str) -> bool:
        """name{...}, or name[ARGS]{...}."""
        found = _NAME.match(body)
        if found is None:
            return self._fall_back()
        after = body[found.end() :]
        if not after or (_ARGS.startswith(after) and after != _ARGS):
            return self._fall_back() if self._final else False
        after_marker = after.removeprefix(_ARGS).lstrip(_BLANK)
        if not after_marker and not self._final:
            return False
        if not after_marker.startswith("{"):
            return self._fall_back()
        self._try(len(self._rest) - len(after_marker))
        return self._next_call(found[0])

    def _next_call(self, name: str | None = None) -> bool:
        self._scanner, self._begun, self._state = CallScanner(name), False, self._call
        return True

    def _call(self) -> bool:
        """Within one call's JSON."""
        scanner = self._scanner
        assert scanner is not None
        used, foreign = 0, False
        while used < len(self._rest) and not (scanner.done or scanner.broken or foreign):
            scanner.push(self._rest[used])
            used += not scanner.broken
            foreign = scanner.begun and not self._begun and not self._counts(scanner.name)
        self._try(used)
        if foreign:
            return self._fall_back()
        if scanner.begun and not self._begun:
            self._begun = True
            self._emit(Call(self._calls, scanner.name or ""))
            self._calls += 1
        if self._begun:
            self._tried = ""
            self._emit(Arguments(self._calls - 1, scanner.take()))
        if scanner.done and self._begun:
            self._state = self._after
            return True
        if scanner.done or scanner.broken or (self._final and not self._begun):
            return self._fall_back()
        return False

    def _counts(self, name: str | None) -> bool:
        return self._marked or name in self._names

    def _after(self) -> bool:
        """Behind a call: its end, another one, or text."""
        format = self._format
        assert format is not None
        body = self._rest.lstrip(_BLANK)
        if not body:
            self._rest = "" if self._final else self._rest
            return False
        before = len(self._rest) - len(body)
        if self._listed and body[0] in ",]":
            self._try(before + 1)
            if body[0] == ",":
                return self._next_call()
            self._tried, self._listed = "", False
            return True
        if format.separator and body.startswith(format.separator):
            self._try(before + len(format.separator))
            self._state = self._open
            return True
        if format.end:
            if body.startswith(format.end):
                self._rest, self._state = body[len(format.end) :], self._answer
                return True
            if format.end.startswith(body):
                self._rest = "" if self._final else self._rest
                return False
        self._state = self._answer
        return True

    def _fall_back(self) -> bool:
        """It was no call: what was tried is text."""
        self._rest, length = self._tried + self._rest, len(self._tried)
        self._tried, self._scanner = "", None
        self._answered = True
        self._say(length)
        self._state = self._answer
        return True

    def _say(self, length: int) -> None:
        """So much of the rest is text."""
        text, self._rest = self._rest[:length], self._rest[length:]
        self._answered = self._answered or bool(text.strip(_BLANK))
        self._emit(Text(text))

    def _emit(self, event: Event) -> None:
        if not isinstance(event, Call) and not event.text:
            return
        last = self._events[-1] if self._events else None
        match last, event:
            case (Text(before), Text(more)) | (Reasoning(before), Reasoning(more)):
                self._events[-1] = dataclasses.replace(last, text=before + more)
            case _:
                self._events.append(event)


def _safe(text: str, marker: str) -> int:
    """How much of the text cannot belong to a marker that has begun, nor be blanks before it."""
    end = len(text)
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            end -= length
            break
    return len(text[:end].rstrip(_BLANK))
