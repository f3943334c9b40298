"""The tokens of a tokenizer as bytes, which is how grammars see them.

Byte-level BPE and sentencepiece with byte fallback say their bytes in the pieces themselves; of
other tokenizers each token is decoded after another one, so that a space before it is kept.
"""

import json
import re
from collections.abc import Callable

from jaxinfer.tokenizer import Tokenizer

SPECIAL = b"\xff"  # llguidance's mark of a token that no text matches
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # sentencepiece's


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (Radford et al., 2019, GPT-2):
    printable ones stand for themselves, the others for the characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[bytes], list[int]]:
    """The bytes that each of `vocab_size` ids adds to a text that has begun, and the ids of special
    tokens, whose names follow SPECIAL. An id without a token, or without a text, has none.
    """
    found = [b""] * vocab_size
    spell = _speller(tokenizer)
    for piece, token in tokenizer.backend.get_vocab(with_added_tokens=False).items():
        if token < vocab_size:
            found[token] = spell(piece, token)
    special = []
    for token, added in tokenizer.backend.get_added_tokens_decoder().items():
        if token >= vocab_size:
            continue
        found[token] = added.content.encode()
        if added.special or token in tokenizer.eos_ids:
            found[token] = SPECIAL + found[token]
            special.append(token)
    for token in tokenizer.eos_ids:
        if token < vocab_size and token not in special:
            found[token] = SPECIAL + (found[token] or f"<eos{token}>".encode())
            special.append(token)
    return found, special


def _speller(tokenizer: Tokenizer) -> Callable[[str, int], bytes]:
    """(piece, id) -> bytes."""
    decoder = tokenizer.backend.decoder
    kinds = _kinds(None if decoder is None else json.loads(decoder.__getstate__()))
    alphabet = byte_alphabet() if "ByteLevel" in kinds else {}
    falls_back = "ByteFallback" in kinds
    spaced = falls_back or "Metaspace" in kinds
    context = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = tokenizer.decode(context)

    def spell(piece: str, token: int) -> bytes:
        if alphabet and all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        if falls_back and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if spaced:
            return piece.replace(_SPACE, " ").encode()
        return tokenizer.decode([*context, token]).removeprefix(before).encode()

    return spell


def _kinds(decoder: dict | None) -> set[str]:
    """The types of a decoder and of those in it."""
    if decoder is None:
        return set()
    inner = [_kinds(each) for each in decoder.get("decoders", ())]
    return {decoder["type"]}.union(*inner)
