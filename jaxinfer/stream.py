"""Token ids to text that is safe to show while it grows.

Two things make this harder than decoding token by token: a character may be spread over several
tokens, and a stop string may be. `Detokenizer` shows a character when its last byte is there and
holds back any end of the text with which a stop string may begin. It decodes a short window of
the last tokens, never the whole text, so the total cost is linear. It knows nothing of models,
requests or tokenizers beyond a function that decodes a list of ids.
"""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
# An unfinished UTF-8 character is up to three bytes: decoders show one U+FFFD for all of them (byte
# level) or one for each (byte fallback).
_MAX_UNFINISHED = 3
_PROMPT_TAIL = 16  # tokens of the prompt that the first generated tokens are decoded after
_LONGEST_WINDOW = (
    32  # tokens without a clean end (broken bytes only): the window is cut to its tail
)
_WINDOW_TAIL = 8


class Detokenizer:
    """Turns one sequence of token ids into text, piece by piece.

    The pieces together are `tokenizer_decode(all ids)`, cut where the first stop string ends.
    One exception: a decoder with byte fallback (sentencepiece) makes U+FFFD of a whole run of byte
    tokens when one of them is wrong; characters of that run that were already shown stay.

    Args:
      tokenizer_decode: `decode(ids, skip_special_tokens=bool) -> str`, as `Tokenizer.decode`.
      stop: stop strings. The one that is complete first ends the text; of several that end at the
        same character, the longest.
      skip_special_tokens: whether special tokens are left out of the text.
      include_stop: whether the text ends with the stop string or before it.
      prompt_ids: tokens before the first one pushed. With them the text is what follows the
        prompt's text, so a leading space is kept where the tokenizer drops it at a beginning.
    """

    def __init__(
        self,
        tokenizer_decode: Callable[..., str],
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
        prompt_ids: Sequence[int] = (),
    ):
        self._tokenizer_decode = tokenizer_decode
        self._skip_special_tokens = skip_special_tokens
        self._include_stop = include_stop
        self._stops = _StopMatcher(stop)
        self._window = self._prompt_tail(prompt_ids)  # ids that are still decoded
        self._anchor = len(self._window)  # how many of them are only context
        self._seen = self._decode(self._window)  # text of the window
        self._shown = _finished(self._seen)  # its beginning that went on to the stop strings
        self._held = ""  # finished characters that may begin a stop string
        self._pieces: list[str] = []
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stopped

    @property
    def text(self) -> str:
        """All that was returned so far."""
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that became safe to show, maybe none.

        After a stop string, tokens are ignored.
        """
        if self._stopped is not None:
            return ""
        return self._release(self._finished_text(token_id))

    def finish(self) -> str:
        """Returns what was held back, unfinished characters as U+FFFD. Ends the sequence."""
        if self._stopped is not None:
            return ""
        rest = self._seen[len(self._shown) :]
        self._shown = self._seen
        shown = self._release(rest)
        if self._stopped is None:
            shown += self._held
            self._pieces.append(self._held)
            self._held = ""
            self._stops.reset()
        return shown

    def _decode(self, ids: list[int]) -> str:
        return (
            self._tokenizer_decode(ids, skip_special_tokens=self._skip_special_tokens)
            if ids
            else ""
        )

    def _prompt_tail(self, prompt_ids: Sequence[int]) -> list[int]:
        """The last tokens of the prompt, from where a character begins."""
        for extra in range(_MAX_UNFINISHED + 1):
            tail = list(prompt_ids[-_PROMPT_TAIL - extra :])
            if not self._decode(tail).startswith(REPLACEMENT):
                return tail
        return list(prompt_ids[-_PROMPT_TAIL:])

    def _finished_text(self, token_id: int) -> str:
        """The characters that `token_id` completes."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text == self._seen and self._decode([token_id, token_id]) == "":
            self._window.pop()  # no text in any context: a skipped special token, an unused id
            return ""
        if not text.startswith(self._shown):
            # Byte fallback: this byte made U+FFFD of characters that were complete. They stay.
            self._window = self._window[self._anchor :]
            self._anchor, self._shown = 0, ""
            text = self._decode(self._window)
        finished = _finished(text)
        fresh = finished[len(self._shown) :]
        self._seen = text
        self._shown = max(self._shown, finished, key=len)
        if finished == text:
            self._window = self._window[self._anchor :]
            self._anchor = len(self._window)
            self._seen = self._shown = self._decode(self._window)
        elif len(self._window) > _LONGEST_WINDOW:
            fresh += self._cut_window()
        return fresh

    def _cut_window(self) -> str:
        """Keeps the tail of the window; returns text that the tail no longer holds."""
        waiting = self._seen[len(self._shown) :]
        self._window = self._window[-_WINDOW_TAIL:]
        self._seen = self._decode(self._window)
        if self._seen.endswith(waiting):
            self._shown = self._seen[: len(self._seen) - len(waiting)]
            self._anchor = len(self._window) - len(waiting)
            return ""
        self._shown = _finished(self._seen)  # byte fallback: the tail has no wrong byte any more
        self._anchor = len(self._window)
        return waiting

    def _release(self, fresh: str) -> str:
        """Passes finished characters by the stop strings."""
        held = self._held + fresh
        found = self._stops.advance(fresh)
        if found is None:
            end = len(held) - self._stops.partial
            self._held = held[end:]
        else:
            self._stopped, unread = found
            end = len(held) - unread - (0 if self._include_stop else len(self._stopped))
            self._held = ""
        self._pieces.append(held[:end])
        return held[:end]


def _finished(text: str) -> str:
    """`text` without the U+FFFD at its end that may be the beginning of a character."""
    end = len(text)
    while end > 0 and len(text) - end < _MAX_UNFINISHED and text[end - 1] == REPLACEMENT:
        end -= 1
    return text[:end]


class _StopMatcher:
    """Finds stop strings in a text that comes in pieces (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, stops: Sequence[str]):
        self._stops = sorted(set(stops), key=len, reverse=True)  # the longest wins a tie
        if "" in self._stops:
            raise ValueError("stop: required non-empty strings; received ''; drop it")
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop that the text ends with

    @property
    def partial(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        return max(self._matched, default=0)

    def reset(self) -> None:
        """Forgets the text."""
        self._matched = [0] * len(self._stops)

    def advance(self, text: str) -> tuple[str, int] | None:
        """Reads `text`; returns the stop string complete first and how many characters follow."""
        if not self._stops:
            return None
        for position, character in enumerate(text, start=1):
            for index, stop in enumerate(self._stops):
                matched = self._matched[index]
                while matched and stop[matched] != character:
                    matched = self._borders[index][matched]
                matched += stop[matched] == character
                if matched == len(stop):
                    return stop, len(text) - position
                self._matched[index] = matched
        return None


def _borders(stop: str) -> list[int]:
    """For each length n < len(stop): the longest proper prefix of `stop[:n]` that is its suffix."""
    borders = [0] * len(stop)
    length = 0
    for n in range(2, len(stop)):
        while length and stop[length] != stop[n - 1]:
            length = borders[length]
        length += stop[length] == stop[n - 1]
        borders[n] = length
    return borders
