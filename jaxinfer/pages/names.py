"""The name of a page: a chained SHA-256 of everything that its keys and values depend on.

That is whose it is (the salt), all tokens before it (the name of the page before) and its own
tokens. A collision would show one request another's text, hence a cryptographic hash, as vLLM's
automatic prefix caching came to use one.
"""

import hashlib
from array import array
from collections.abc import Sequence


def root(salt: str, variant: int = 0) -> bytes:
    """What the first page's name begins with. variant: what else changes keys (a rope's factors)."""
    return hashlib.sha256(f"{variant}:{salt}".encode()).digest()


def extend(names: list[bytes], start: bytes, ids: Sequence[int], page_size: int) -> None:
    """Append the names of the full pages of `ids`, the tokens after those that names stand for."""
    for begin in range(0, len(ids) - page_size + 1, page_size):
        tokens = array("i", ids[begin : begin + page_size]).tobytes()
        names.append(hashlib.sha256((names[-1] if names else start) + tokens).digest())
