"""A server's own counters, in Prometheus' text form: how much of its prompts it found in its cache."""

import math
import re

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})?[ \t]+(\S+)", re.MULTILINE)
# (tokens found, tokens looked for), as the servers call them
PREFIX = (
    ("jaxinfer_prefix_hit_tokens_total", "jaxinfer_read_prompt_tokens_total"),
    ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
    ("sglang:cached_tokens_total", "sglang:prompt_tokens_total"),
)


def parse(text: str) -> dict[str, float]:
    """Every sample's value by its name, summed over its labels."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            found[name] = found.get(name, 0.0) + number
    return found


def prefix_hits(before: str | None, after: str | None) -> tuple[float, float] | None:
    """(tokens of prompts found in the cache, tokens of prompts) between two readings; None where
    the server does not count them, or read no prompt.
    """
    if before is None or after is None:
        return None
    old, new = parse(before), parse(after)
    for hits, asked in PREFIX:
        if hits in new and asked in new:
            total = new[asked] - old.get(asked, 0.0)
            return (new[hits] - old.get(hits, 0.0), total) if total > 0 else None
    return None
