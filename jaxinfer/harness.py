"""jaxinfer as a model of lm-evaluation-harness (extra `eval`): how likely texts are, whole or in
windows, and what follows a text.

`python -m jaxinfer.harness run --model_args ... --tasks ...` is the harness's own command line with
this model known to it as "jaxinfer". Scores are of raw logits, one text at a time, in programs for
power-of-two lengths; texts are generated together, with continuous batching. The answers are those
of `LM`'s documentation (Gao et al., "The Language Model Evaluation Harness").
"""

import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from jaxinfer.model import Model, load
from jaxinfer.reading import Reader
from jaxinfer.request import SamplingParams
from jaxinfer.tokenizer import Tokenizer

LOG = logging.getLogger("jaxinfer.harness")
NEW_TOKENS = 256  # of an answer whose task does not say
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "seed")
READ = ("do_sample", "until", "max_gen_toks")
RENAMED = {"max_new_tokens": "max_gen_toks", "max_tokens": "max_gen_toks"}


def sampling(settings: dict[str, Any]) -> SamplingParams:
    """A task's gen_kwargs as parameters of ours. Without do_sample, or with a temperature of 0, they
    are greedy, as in transformers. ValueError names what is not known.
    """
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    unknown = set(settings) - {*SAMPLED, *READ}
    if unknown:
        raise ValueError(
            f"gen_kwargs needs names among {', '.join((*READ, *SAMPLED))}, got "
            f"{', '.join(sorted(unknown))}"
        )
    until = settings.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(dict.fromkeys(until))
    found = {name: settings[name] for name in SAMPLED if settings.get(name) is not None}
    if not settings.get("do_sample", found.get("temperature", 0) > 0):
        found["temperature"] = 0.0
    return SamplingParams(
        **found,
        max_new_tokens=int(settings.get("max_gen_toks") or NEW_TOKENS),
        stop=tuple(text for text in until if text),
    )


@register_model("jaxinfer")
class HarnessModel(TemplateLM):
    """A model to be evaluated.

    Args:
      pretrained: a folder with a checkpoint or a Hugging Face hub id; None: the shipped model.
      dtype, mesh, quantize, kv_dtype: of `jaxinfer.load`. max_slots: texts generated at once.
      max_length: tokens the model sees of a text; None: as many as its positions. Longer texts
        lose their beginning, and a warning says how many did.
      model: takes the place of all of these.
      batch_size, max_batch_size, device: given by the harness to every model; change nothing.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        dtype: str | None = None,
        mesh: str | None = None,
        quantize: Any = None,
        kv_dtype: Any = None,
        max_slots: int = 32,
        max_length: int | None = None,
        model: Model | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
    ):
        super().__init__()
        options: dict[str, Any] = {"max_slots": int(max_slots), "progress": False}
        if model is None:
            options |= {"quantize": quantize, "kv_dtype": kv_dtype}
            model = load(pretrained, dtype=dtype, mesh=mesh, **options)
        if model.tokenizer is None:
            raise ValueError("evaluation needs a tokenizer, and this model has none; add its files")
        self.model = model
        self._name = pretrained or "jaxinfer"
        self._tokenizer: Tokenizer = model.tokenizer
        self._reader = Reader(model.params, model.config, model.mesh, kv_dtype=model.kv_dtype)
        # the last of max_length + 1 tokens is predicted and not read
        most = model.config.max_position - 1
        if max_length is not None and not 2 <= int(max_length) <= most:
            raise ValueError(f"max_length needs to be 2 .. {most} for this model, got {max_length}")
        self.max_length = most if max_length is None else int(max_length)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. ValueError where the tokenizer names none."""
        if not self._tokenizer.eos_ids:
            raise ValueError("evaluation needs an end-of-text token, and this tokenizer names none")
        return self._tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, or else the end of another text."""
        bos = self._tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text; None adds special tokens unless the text begins with BOS already."""
        if add_special_tokens is None:
            bos = self._tokenizer.special_tokens.get("bos_token")
            add_special_tokens = not (bos and string.startswith(bos))
        return self._tokenizer.encode(string, add_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of a template, by which the harness tells caches apart."""
        if not chat_template:
            return None
        name = chat_template if isinstance(chat_template, str) else "default"
        return self._tokenizer.chat_templates.get(name)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self._tokenizer.apply_chat_template(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding would say it) of each continuation, given
        (its texts, the context's ids, its ids).
        """
        found, cut = [], 0
        for texts, context, continuation in tqdm(requests, "loglikelihood", disable=disable_tqdm):
            ids = (context + continuation)[-(self.max_length + 1) :]
            counted = min(len(continuation), len(ids) - 1)
            cut += len(ids) < len(context) + len(continuation)
            scores = [s for s in self._reader.score(ids, 1)[len(ids) - counted :] if s is not None]
            answer = (sum(s.logprob for s in scores), all(s.rank == 1 for s in scores))
            found.append(answer)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        _tell(cut, "texts lost their beginning", self.max_length)
        return found

    def loglikelihood_rolling(
        self, requests: Iterable[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each whole text, in windows that predict every token once."""
        found = []
        for text in tqdm([r.args[0] for r in requests], "rolling", disable=disable_tqdm):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(value for value, _ in self._loglikelihood_tokens(parts, disable_tqdm=True))
            found.append(float(total))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Iterable[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each text, before the first of its stop texts; those that share settings
        run together.
        """
        asked: list[Any] = [request.args for request in requests]
        groups: dict[str, list[int]] = {}
        for index, (_, settings) in enumerate(asked):
            groups.setdefault(repr(sorted(settings.items())), []).append(index)
        found, cut = [""] * len(asked), 0
        bar = tqdm(total=len(asked), desc="generate", disable=disable_tqdm)
        for indices in groups.values():
            params = sampling(asked[indices[0]][1])
            room = self.model.config.max_position - params.max_new_tokens
            if room < 1:
                raise ValueError(
                    f"max_gen_toks needs to be below the model's {self.model.config.max_position} "
                    f"positions, got {params.max_new_tokens}"
                )
            prompts = [self.tok_encode(asked[i][0]) or [self.prefix_token_id] for i in indices]
            cut += sum(len(ids) > room for ids in prompts)
            for chunk in self.model.stream([ids[-room:] for ids in prompts], params):
                if chunk.completion is not None:
                    index = indices[chunk.index]
                    found[index] = chunk.completion.text
                    self.cache_hook.add_partial("generate_until", asked[index], found[index])
                    bar.update()
        bar.close()
        _tell(
            cut, "prompts lost their beginning beside their answers", self.model.config.max_position
        )
        return found


def _tell(count: int, what: str, most: int) -> None:
    if count:
        LOG.warning("%d %s: they are longer than %d tokens", count, what, most)


def main() -> None:
    """The harness's command line, with this model unless --model names another."""
    words = sys.argv[1:]
    if words[:1] == ["run"] and not any(word.split("=")[0] in ("--model", "-M") for word in words):
        sys.argv[2:2] = ["--model", "jaxinfer"]
    cli_evaluate()


if __name__ == "__main__":
    main()
