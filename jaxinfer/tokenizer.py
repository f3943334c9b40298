"""Text to token ids and back, and chat messages to text.

A tokenizer is what a Hugging Face checkpoint folder says it is: `tokenizer.json` (run by the
`tokenizers` library), the names of its special tokens, the EOS ids, and chat templates. Ids and
texts equal those of `transformers.AutoTokenizer`, except that decoding never "cleans up" spaces.

This module knows nothing of models, of requests or of streaming.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from jaxinfer.chat_template import render

MAX_FILE_BYTES = 2**28  # of tokenizer.json and of each configuration file
MAX_EOS_IDS = 16

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class Tokenizer:
    """Text <-> token ids of one checkpoint. Make it with `Tokenizer.load`.

    Fields:
      backend: the `tokenizers.Tokenizer` that does the work.
      special_tokens: {"bos_token": "<s>", ...}: the names a chat template can use.
      chat_templates: {"default": source, ...}; empty for a base model.
      eos_ids: ids that end a text: the tokenizer's EOS token first, then generation_config.json's.
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]
    chat_templates: Mapping[str, str]
    eos_ids: tuple[int, ...]

    @classmethod
    def load(
        cls, folder: Path, *, add_bos_token: bool | None = None, add_eos_token: bool | None = None
    ) -> "Tokenizer":
        """Reads the tokenizer files of a checkpoint folder.

        Whether BOS and EOS are added is decided by the post-processor in tokenizer.json; the flags
        of these names in tokenizer_config.json are not read where there is a tokenizer.json, as in
        transformers 5. Given here, they replace the post-processor.

        Raises FileNotFoundError without a tokenizer.json, ValueError on a malformed file.
        """
        folder = Path(folder)
        backend = _read_backend(folder / "tokenizer.json")
        config = _read_object(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            config |= _read_object(folder / "special_tokens_map.json")
        try:
            special = _declare_special_tokens(backend, config)
        except (AttributeError, LookupError, TypeError, ValueError) as cause:
            raise _malformed(folder / "tokenizer_config.json", "special tokens", cause) from cause
        if add_bos_token is not None or add_eos_token is not None:
            _replace_post_processor(backend, special, bool(add_bos_token), bool(add_eos_token))
        generation = _read_object(folder / "generation_config.json")
        if "eos_token_id" not in generation:
            generation = _read_object(folder / "config.json")
        return cls(
            backend,
            special,
            _chat_templates(folder, config),
            _eos_ids(folder, backend.token_to_id(special.get("eos_token", "")), generation),
        )

    @property
    def bos_id(self) -> int | None:
        """Id of the BOS token, or None where there is none."""
        return self.backend.token_to_id(self.special_tokens.get("bos_token", ""))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model may have more logits than this."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with `add_special_tokens` as the checkpoint wants a prompt to begin.

        A chat made by `apply_chat_template` already holds its BOS token: use `encode_chat`, or
        pass add_special_tokens=False.
        """
        if not isinstance(text, str):
            raise ValueError(
                f"text: required a str; received {type(text).__name__}; decode it first"
            )
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as cause:  # a lone surrogate; a character the vocabulary cannot spell
            raise ValueError(
                f"text: required characters that this tokenizer knows; received {cause}; "
                "drop them, or decode bytes with errors='replace'"
            ) from cause

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids outside the vocabulary have none, broken UTF-8 becomes U+FFFD."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token sequences of `words`, each at the beginning of a text and after a space."""
        sequences = (
            tuple(self.encode(text, add_special_tokens=False))
            for word in words
            for text in (word, " " + word.lstrip(" "))
        )
        return tuple(dict.fromkeys(sequence for sequence in sequences if sequence))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options) -> list[int]:
        """Token ids of a chat; `options` as in `apply_chat_template`. No BOS but the template's."""
        return self.encode(self.apply_chat_template(messages, **options), add_special_tokens=False)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **kwargs,
    ) -> str:
        """Renders `messages` ({"role": ..., "content": ...}) as the model was trained on them.

        Args:
          tools: JSON schemas of functions the model may call.
          add_generation_prompt: end with the header of the assistant's answer.
          template: the name of one of `chat_templates`, or the source of another template; by
            default "tool_use" where there are tools and such a template, else "default".
          **kwargs: more variables for the template (`enable_thinking`, `documents`, ...).

        Raises ValueError: no template, not JSON data, an error in the template or raised by it.
        """
        return render(
            self.template_source(template, tools),
            messages,
            **{"documents": None, **self.special_tokens, **kwargs},
            tools=None if tools is None else list(tools),
            add_generation_prompt=add_generation_prompt,
        )

    def template_source(self, template: str | None = None, tools: Sequence | None = None) -> str:
        """The template that `apply_chat_template` renders with these options; ValueError where there
        is none.
        """
        templates = self.chat_templates
        if template is not None:
            return templates.get(template, template)
        if tools is not None and "tool_use" in templates:
            return templates["tool_use"]
        if "default" in templates:
            return templates["default"]
        raise ValueError(
            f"chat template: required a default one; received {sorted(templates)} with this "
            "tokenizer; pass template=, or give the model plain text"
        )


def _malformed(path: Path, required: str, cause: Any) -> ValueError:
    return ValueError(f"{path}: required {required}; received {cause}; download the file again")


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise _malformed(path, f"at most {MAX_FILE_BYTES} bytes", size)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as cause:
        raise _malformed(path, "UTF-8 text", cause) from cause


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as cause:
        raise _malformed(path, "JSON", cause) from cause
    if not isinstance(value, dict):
        raise _malformed(path, "a JSON object", type(value).__name__)
    return value


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: required a tokenizer.json; received none; convert the tokenizer with "
            "transformers' save_pretrained, or work with token ids"
        )
    source = _read_text(path)
    _check_merges(path, source)
    required = "a tokenizer that the tokenizers library reads"
    try:
        backend = tokenizers.Tokenizer.from_str(source)
    except Exception as cause:  # the library raises this very class
        raise _malformed(path, required, cause) from cause
    _check_template_tokens(path, backend)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _check_merges(path: Path, source: str) -> None:
    """Refuses merges shorter than the prefix they must have, on which the library aborts."""
    if not re.search(r'"continuing_subword_prefix"\s*:\s*"[^"]', source):
        return
    model = _read_object(path).get("model")
    model = model if isinstance(model, dict) else {}
    prefix, merges = model.get("continuing_subword_prefix") or "", model.get("merges")
    for merge in merges if isinstance(merges, list) else []:
        right = (merge.split(" ") if isinstance(merge, str) else merge)[-1:]
        if not all(isinstance(part, str) and part.startswith(prefix) for part in right):
            raise _malformed(path, f"merges with the prefix {prefix!r} on the right", repr(merge))


def _check_template_tokens(path: Path, backend: tokenizers.Tokenizer) -> None:
    """Refuses a post-processor that adds a token it does not define: encoding would panic."""
    if backend.post_processor is None:
        return
    state = json.loads(backend.post_processor.__getstate__())
    for processor in (state, *state.get("processors", ())):
        added = (*processor.get("single", ()), *processor.get("pair", ()))
        names = {piece["SpecialToken"]["id"] for piece in added if "SpecialToken" in piece}
        undefined = names - set(processor.get("special_tokens", ()))
        if processor["type"] == "TemplateProcessing" and undefined:
            raise _malformed(path, "special_tokens for the post-processor's", sorted(undefined))


def _added_token(value: Any, **defaults) -> tokenizers.AddedToken:
    if isinstance(value, str):
        return tokenizers.AddedToken(value, **defaults)
    fields = {key: field for key, field in value.items() if key != "__type"}
    return tokenizers.AddedToken(**{**defaults, **fields})


def _declare_special_tokens(backend: tokenizers.Tokenizer, config: dict) -> dict[str, str]:
    """Adds the special tokens of a tokenizer_config.json to `backend`; returns them by name."""
    named = {name: config[name] for name in _NAMED if config.get(name) is not None}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named |= extra
        extra = []
    for name, value in config.items():
        if name.endswith("_token") and isinstance(value, str | dict):
            named.setdefault(name, value)

    declared = config.get("added_tokens_decoder", {})
    declared = [_added_token(declared[key]) for key in sorted(declared, key=int)]
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in declared if repr(token) not in known])
    by_content = {token.content: token for token in declared}
    special = [_added_token(token, special=True) for token in [*named.values(), *extra]]
    backend.add_special_tokens([by_content.get(token.content, token) for token in special])
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    return {name: _added_token(value).content for name, value in named.items()}


def _replace_post_processor(
    backend: tokenizers.Tokenizer, special: dict[str, str], bos: bool, eos: bool
) -> None:
    names = ["bos_token"] * bos + ["eos_token"] * eos
    for name in names:
        if name not in special:
            raise ValueError(
                f"add_{name}: required a {name}; received a tokenizer without; drop it"
            )
    pairs = [(special[name], backend.token_to_id(special[name])) for name in names]
    before, after = [
        [special[name]] if flag else [] for name, flag in (("bos_token", bos), ("eos_token", eos))
    ]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=pairs,
    )


def _eos_ids(folder: Path, tokenizer_eos: int | None, generation: dict) -> tuple[int, ...]:
    ids = generation.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    for token in ids:
        if type(token) is not int or not 0 <= token < 2**31:
            raise _malformed(folder, "eos_token_id: a token id or a list of them", repr(token))
    unique = tuple(dict.fromkeys(ids if tokenizer_eos is None else [tokenizer_eos, *ids]))
    if len(unique) > MAX_EOS_IDS:
        raise _malformed(folder, f"at most {MAX_EOS_IDS} EOS ids", len(unique))
    return unique


def _chat_templates(folder: Path, config: dict) -> dict[str, str]:
    """Templates by name. Those in files replace those in tokenizer_config.json."""
    files = (
        {"default": folder / "chat_template.jinja"}
        if (folder / "chat_template.jinja").is_file()
        else {}
    )
    files |= {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if files:
        return {name: _read_text(path) for name, path in files.items()}
    templates = config.get("chat_template") or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    path = folder / "tokenizer_config.json"
    try:
        if isinstance(templates, list):
            templates = {entry["name"]: entry["template"] for entry in templates}
        if all(isinstance(source, str) for source in templates.values()):
            return templates
    except (AttributeError, KeyError, TypeError) as cause:
        raise _malformed(path, "chat_template: a string or named templates", cause) from cause
    raise _malformed(path, "chat_template: a string or named templates", "another type")
