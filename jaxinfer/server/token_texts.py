"""What one token alone looks like: its bytes, and a text that never holds broken characters.

A token may be a part of a character. Its bytes are exact all the same; its text is then written as
"bytes:\\xe2\\x82", as OpenAI's API does.
"""

import json
import re

from jaxinfer.stream import Detokenizer
from jaxinfer.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (Radford et al., 2019, GPT-2):
    printable ones stand for themselves, the others for the characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


class TokenTexts:
    """The tokens of one tokenizer; what was asked once is kept."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        decoder = tokenizer.backend.decoder
        state = "" if decoder is None else json.dumps(json.loads(decoder.__getstate__()))
        self._alphabet = _byte_alphabet() if '"ByteLevel"' in state else {}
        self._falls_back = '"ByteFallback"' in state
        added = tokenizer.backend.get_added_tokens_decoder()
        self._added = {id: token.content for id, token in added.items()}
        self._context = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._before = tokenizer.decode(self._context)
        self._known: dict[int, tuple[str, list[int]]] = {}

    def text(self, token_id: int) -> str:
        return self._look(token_id)[0]

    def growing(self) -> Detokenizer:
        """For a text from its beginning, without special tokens."""
        return Detokenizer(self._tokenizer.decode)

    def data(self, token_id: int) -> list[int]:
        """Its UTF-8 bytes."""
        return self._look(token_id)[1]

    def _look(self, token_id: int) -> tuple[str, list[int]]:
        if token_id not in self._known:
            data = self._bytes(token_id)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
            self._known[token_id] = text, list(data)
        return self._known[token_id]

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.backend.id_to_token(token_id)
        if piece is None:  # a model may have more logits than its tokenizer has tokens
            return b""
        if self._alphabet and all(character in self._alphabet for character in piece):
            return bytes(self._alphabet[character] for character in piece)
        if self._falls_back and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        # after another token, so that a space at its beginning is kept
        whole = self._tokenizer.decode([*self._context, token_id])
        return whole.removeprefix(self._before).encode()
