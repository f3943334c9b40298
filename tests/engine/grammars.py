"""Grammars over token ids, without a tokenizer, and what a model says under them."""

import numpy as np

from jaxinfer.sampler import mask_words
from tests import oracle, tiny

EOS = 1


class Walk:
    """Its k-th token comes from the k-th of `sets`; after them comes EOS. breaks, refuses: how many
    tokens have come when its mask, its advance raises.
    """

    vocab_size = tiny.VOCAB

    def __init__(self, sets, *, breaks=None, refuses=None):
        self.sets = [sorted({int(token) for token in one}) for one in sets]
        self.breaks, self.refuses = breaks, refuses

    def matcher(self) -> "Walker":
        return Walker(self)

    def allowed(self, position) -> list[int]:
        return self.sets[position] if position < len(self.sets) else [EOS]


class Walker:
    def __init__(self, walk: Walk):
        self._walk, self._taken, self.finished = walk, 0, False

    def mask(self):
        if self._taken == self._walk.breaks:
            raise RuntimeError("no way on")
        bits = np.zeros((mask_words(tiny.VOCAB) * 32,), bool)
        bits[self._walk.allowed(self._taken)] = True
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def advance(self, token):
        if self._taken == self._walk.refuses:
            raise RuntimeError("not this way")
        assert token in self._walk.allowed(self._taken)
        self._taken += 1
        self.finished = token == EOS


def random_walk(rng, length, **options) -> Walk:
    """Sets of one token to half of them, without EOS."""
    sizes = rng.integers(1, tiny.VOCAB // 2, length)
    others = np.arange(EOS + 1, tiny.VOCAB)
    return Walk([rng.choice(others, size, replace=False) for size in sizes], **options)


def greedy(params, config, prompt, walk) -> list[int]:
    """The likeliest walk, token by token, and its EOS."""
    found: list[int] = []
    while EOS not in found:
        logits = oracle.logits(params, config, [*prompt, *found])[-1]
        allowed = walk.allowed(len(found))
        found.append(allowed[int(np.argmax(logits[allowed]))])
    return found
