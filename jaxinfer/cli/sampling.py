"""Flags for every field of SamplingParams."""

import dataclasses
from typing import Any

from absl.flags import FlagValues

from jaxinfer.cli.flags import BIAS, IDS, INTEGER, REAL, TEXT, Flags
from jaxinfer.request import LOGPROBS_MODES, SamplingParams

HELP = {
    "max_new_tokens": "tokens to generate at most",
    "temperature": "0 takes the likeliest token; higher is more varied",
    "top_k": "draw from the k likeliest tokens only; 0 is off",
    "top_p": "draw from the smallest set of likeliest tokens with this probability; 1 is off",
    "min_p": "drop tokens below this fraction of the likeliest one's probability; 0 is off",
    "typical_p": "locally typical sampling; 1 is off",
    "repetition_penalty": "make tokens that occurred less likely; 1 is off",
    "presence_penalty": "subtracted once from the logit of each generated token",
    "frequency_penalty": "subtracted for each time a token was generated",
    "logit_bias": "add to a token's logit, like 42:-5",
    "min_tokens": "no end of text before this many tokens",
    "bad_words": "a text never to generate",
    "bad_word_ids": "token ids, like 5,6, never to generate in a row",
    "seed": "makes a draw repeatable",
    "n": "how many continuations",
    "stop": "end at this text, which is left out",
    "stop_token_ids": "end at any of these token ids, like 1,2",
    "ignore_eos": "go on after the model's end-of-text token",
    "logprobs": "report log-probabilities, and this many of the likeliest tokens beside each (0: none)",
    "logprobs_mode": "of the model's own distribution, or after penalties, temperature and masks",
}
FORMS = {
    "bad_words": (TEXT, "TEXT"),
    "stop": (TEXT, "TEXT"),
    "bad_word_ids": (IDS, "IDS"),
    "logit_bias": (BIAS, "ID:BIAS"),
}
# At a shell, text that reads well is wanted; the library's defaults are the model's own
# distribution.
DEFAULTS = {"temperature": 0.7, "top_p": 0.95}


def define(flags: Flags, leave_out: tuple[str, ...] = ()) -> None:
    flags.group("How to continue")
    for field in dataclasses.fields(SamplingParams):
        name, default = field.name, DEFAULTS.get(field.name, field.default)
        if name in leave_out:
            continue
        if name in FORMS:
            parser, form = FORMS[name]
            flags.many(name, parser, HELP[name], form)
        elif name == "stop_token_ids":
            flags.one(name, IDS, HELP[name], default, "IDS")
        elif name == "logprobs_mode":
            flags.choice(name, HELP[name], LOGPROBS_MODES, str(default))
        elif field.type is bool:
            flags.switch(name, HELP[name])
        elif field.type is float:
            flags.one(name, REAL, HELP[name], default, "X")
        else:
            flags.one(name, INTEGER, HELP[name], default)


def read(values: FlagValues) -> SamplingParams:
    """The parameters that the flags describe; ValueError where a value is out of its bounds."""
    names = [field.name for field in dataclasses.fields(SamplingParams) if field.name in values]
    found: dict[str, Any] = {name: values[name].value for name in names}
    return SamplingParams(**found)
