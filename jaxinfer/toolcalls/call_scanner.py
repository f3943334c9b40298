"""One call of a tool in JSON, a character at a time: {"name": ..., "arguments": {...}}."""

import json
from enum import Enum, auto

NAMES = ("name",)
ARGUMENTS = ("arguments", "parameters")
OTHERS = ("id", "type")
_BLANK = " \t\r\n"
MAX_NAME_CHARS = 256


class _At(Enum):
    START = auto()
    FIRST_KEY = auto()  # or the end
    NEXT_KEY = auto()
    COLON = auto()
    VALUE = auto()
    INSIDE = auto()  # a key or a value
    COMMA = auto()  # or the end
    END = auto()
    BROKEN = auto()


class CallScanner:
    """Feed it characters. name: when known. done: the object has ended; broken: it is no call.

    name, given here: the object is the arguments themselves.
    """

    def __init__(self, name: str | None = None):
        self.name, self._bare = name, name is not None
        self._at = _At.START if name is None else _At.VALUE
        self._key: str | None = None if name is None else ARGUMENTS[0]
        self._is_key = False
        self._raw: list[str] = []  # of the key or value that is being read
        self._closers: list[str] = []  # what the open brackets wait for
        self._string = self._escaped = self._scalar = False
        self._arguments: str | None = None  # not taken yet; None before they begin
        self._seen = False

    @property
    def done(self) -> bool:
        return self._at is _At.END

    @property
    def broken(self) -> bool:
        return self._at is _At.BROKEN

    @property
    def begun(self) -> bool:
        """Whether this is a call: its name is known and its arguments have begun (or there are
        none).
        """
        return self.name is not None and (self._seen or self.done)

    def take(self) -> str:
        """Arguments that came since the last time."""
        taken, self._arguments = self._arguments or "", ""
        return taken

    def push(self, character: str) -> None:
        if self._at is _At.INSIDE:
            if self._inside(character):
                return
        elif character in _BLANK:
            return
        self._step(character)

    def _step(self, character: str) -> None:
        """A character between keys and values."""
        match self._at, character:
            case _At.START, "{":
                self._at = _At.FIRST_KEY
            case ((_At.FIRST_KEY | _At.NEXT_KEY), '"'):
                self._begin(character, is_key=True)
            case _At.COLON, ":":
                self._at = _At.VALUE
            case _At.VALUE, _ if character not in ",:]}":
                self._begin(character, is_key=False)
            case _At.COMMA, ",":
                self._at = _At.NEXT_KEY
            case ((_At.FIRST_KEY | _At.COMMA), "}"):
                self._at = _At.END if self.name is not None else _At.BROKEN
                if self.name is not None and not self._seen:
                    self._arguments = "{}"
            case _:
                self._at = _At.BROKEN

    def _begin(self, character: str, *, is_key: bool) -> None:
        self._at, self._is_key, self._raw = _At.INSIDE, is_key, [character]
        self._string, self._escaped = character == '"', False
        self._closers = [_closer(character)] if character in "{[" else []
        self._scalar = not self._string and not self._closers
        if not is_key and self._key in ARGUMENTS:
            if self._scalar or character == "[" or (self._bare and character != "{"):
                self._at = _At.BROKEN
            elif character == "{":
                self._seen, self._arguments = True, character

    def _inside(self, character: str) -> bool:
        """Whether the key or value goes on with this character or ends with it."""
        if self._scalar and (character in _BLANK or character in ",]}"):
            self._finish()
            return character in _BLANK
        if not self._string and character in "}]" and character != self._closers[-1]:
            self._at = _At.BROKEN
            return True
        self._raw.append(character)
        if self._streams:
            self._arguments = (self._arguments or "") + character
            self._raw.clear()
        elif self._key in NAMES and len(self._raw) > MAX_NAME_CHARS:
            self._at = _At.BROKEN
        if self._string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._string = False
                if not self._closers:
                    self._finish()
        elif character == '"' and not self._scalar:
            self._string = True
        elif character in "{[":
            self._closers.append(_closer(character))
        elif character in "}]":
            self._closers.pop()
            if not self._closers:
                self._finish()
        return True

    @property
    def _streams(self) -> bool:
        return not self._is_key and self._key in ARGUMENTS and bool(self._closers)

    def _finish(self) -> None:
        """A key or a value is complete."""
        raw, self._raw = "".join(self._raw), []
        if self._is_key:
            self._at, self._key = _At.COLON, _string(raw)
            if self._key not in (*NAMES, *ARGUMENTS, *OTHERS):
                self._at = _At.BROKEN
            return
        self._at = _At.END if self._bare else _At.COMMA
        if self._key in NAMES:
            self.name = _string(raw)
            if not self.name:
                self._at = _At.BROKEN
        elif self._key in ARGUMENTS and raw:  # a text that holds JSON
            self._seen, self._arguments = True, _string(raw)
            if self._arguments is None:
                self._at = _At.BROKEN
        self._key = None


def _closer(opener: str) -> str:
    return "}" if opener == "{" else "]"


def _string(raw: str) -> str | None:
    try:
        value = json.loads(raw, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
