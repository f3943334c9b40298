"""What an answer must look like: a JSON schema, a regular expression, one of some texts, a grammar.

`Grammar` is what a caller asks for, validated and plain. `compiler` turns it into what a request
carries; it needs llguidance, an extra, and is therefore imported by its own name:

    from jaxinfer.grammar.compiler import Compiler
    compiled = Compiler(tokenizer, vocab_size=config.vocab_size).compile(json_schema(...))
    Request("id", prompt, params, grammar=compiled)

The room imports no jax and knows nothing of models or of the sampler.
"""

from jaxinfer.grammar.description import (
    DEFAULT,
    Grammar,
    Limits,
    choice,
    json_object,
    json_schema,
    lark,
    regex,
    tool_call,
)

__all__ = [
    "DEFAULT",
    "Grammar",
    "Limits",
    "choice",
    "json_object",
    "json_schema",
    "lark",
    "regex",
    "tool_call",
]
