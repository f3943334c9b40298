"""The harness's questions, answered as our own scores and texts answer them, on the draft model; and
a small task of its own, run whole.
"""

import datasets
import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from jaxinfer import SamplingParams, load, shipped
from jaxinfer.harness import HarnessModel, sampling

TEXTS = (
    "def read_lines(path):\n    with open(path) as file:\n        return file.read().splitlines()\n",
    "The function returns a list of the names that were found in the given folder.",
    "import os\nimport sys\n\nfrom pathlib import Path\n\nROOT = Path(__file__).parent\n",
)
LONGEST = 12  # tokens the model is shown, so that short texts need several windows


@pytest.fixture(scope="module")
def model():
    return load(shipped.draft(), dtype="float32", progress=False)


@pytest.fixture(scope="module")
def held(model) -> HarnessModel:
    return HarnessModel(model=model)


@pytest.fixture(scope="module")
def narrow(model) -> HarnessModel:
    return HarnessModel(model=model, max_length=LONGEST)


def ask(kind: str, *arguments) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def seam(model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The harness's rule: spaces at the seam go to the continuation, whose ids are what the whole
    has after as many as the context has alone.
    """
    alone = model.tokenizer.encode(context.rstrip())
    return alone, model.tokenizer.encode(context + continuation)[len(alone) :]


def likely(model, context: list[int], continuation: list[int]) -> float:
    ids = context + continuation
    return sum(model.score(ids)[0].logprobs[len(ids) - len(continuation) :])


def cut(text: str, rng) -> tuple[str, str]:
    at = int(rng.integers(5, len(text) - 5))
    return text[:at], text[at:]


def test_a_continuation_is_as_likely_as_its_tokens(held, model, rng):
    pairs = [cut(text, rng) for text in TEXTS for _ in range(2)]
    found = held.loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        assert value == pytest.approx(likely(model, *seam(model, context, continuation)), abs=1e-3)
        assert isinstance(greedy, bool)


def test_what_greedy_decoding_says_is_greedy(held, model):
    ids = model.encode(TEXTS[0][:30])
    (said,) = model.generate([ids], temperature=0.0, max_new_tokens=6)
    right = list(said.token_ids)
    wrong = [*right[:3], (right[3] + 1) % 8192, *right[4:]]
    asked = [(None, ids, right), (None, ids, wrong)]
    (good, yes), (bad, no) = held._loglikelihood_tokens(asked, disable_tqdm=True)
    assert (yes, no) == (True, False)
    assert good > bad


def test_without_a_context_the_prefix_stands_before(held, model):
    (found,) = held.loglikelihood(ask("loglikelihood", ("", TEXTS[1])), disable_tqdm=True)
    ids = [held.prefix_token_id, *model.tokenizer.encode(TEXTS[1], add_special_tokens=False)]
    assert found[0] == pytest.approx(sum(model.score(ids)[0].logprobs[1:]), abs=1e-3)


def test_long_texts_lose_their_beginning(narrow, model, caplog):
    context, continuation = TEXTS[0].rstrip(), " return path"
    (found,) = narrow.loglikelihood(ask("loglikelihood", (context, continuation)), True)
    before, after = seam(model, context, continuation)
    shown = before[-(LONGEST + 1 - len(after)) :]
    assert len(shown) < len(before)
    assert found[0] == pytest.approx(likely(model, shown, after), abs=1e-3)
    assert "1 texts lost their beginning" in caplog.text


def test_rolling_predicts_every_token_once(narrow, model):
    """The documented rule, window by window: as much context as fits, the last window full."""
    found = narrow.loglikelihood_rolling(ask("loglikelihood_rolling", *[(t,) for t in TEXTS]), True)
    for text, value in zip(TEXTS, found, strict=True):
        ids = [narrow.prefix_token_id, *model.tokenizer.encode(text, add_special_tokens=False)]
        total, done = 0.0, 1
        while done < len(ids):
            stop = min(done + LONGEST, len(ids))
            start = max(0, stop - LONGEST - 1)
            total += sum(model.score(ids[start:stop])[0].logprobs[done - start :])
            done = stop
        assert len(ids) <= LONGEST or stop - start == LONGEST + 1
        assert value == pytest.approx(total, abs=1e-3)
    assert max(len(model.tokenizer.encode(text)) for text in TEXTS) > LONGEST


def test_texts_go_on_until_they_stop(held, model, rng):
    prompts = [cut(text, rng)[0] for text in TEXTS]
    settings = [{"until": ["\n"], "max_gen_toks": 12}, {"max_gen_toks": 5}]
    asked = [(prompt, one) for prompt in prompts for one in settings]
    found = held.generate_until(ask("generate_until", *asked), disable_tqdm=True)
    for (prompt, one), text in zip(asked, found, strict=True):
        (alone,) = model.generate(
            prompt,
            temperature=0.0,
            max_new_tokens=one["max_gen_toks"],
            stop=tuple(one.get("until", ())),
        )
        assert text == alone.text
        assert not ("until" in one and "\n" in text)


def test_settings_of_a_task():
    assert sampling({}) == SamplingParams(temperature=0.0, max_new_tokens=256)
    assert sampling({"do_sample": False, "temperature": 0.7}).temperature == 0
    found = sampling(
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": "x", "max_new_tokens": 3}
    )
    assert (found.temperature, found.top_p, found.stop) == (0.7, 0.9, ("x",))
    assert found.max_new_tokens == 3
    assert sampling({"until": ["a", "", "a"]}).stop == ("a",)
    with pytest.raises(ValueError, match=r"gen_kwargs needs names .* got num_beams"):
        sampling({"num_beams": 4})


def test_what_it_refuses(model):
    with pytest.raises(ValueError, match=r"max_length needs to be 2 .. 1023"):
        HarnessModel(model=model, max_length=1024)
    (asked,) = ask("generate_until", ("x", {"max_gen_toks": 5000}))
    with pytest.raises(ValueError, match="below the model's 1024 positions"):
        HarnessModel(model=model).generate_until([asked], disable_tqdm=True)


CHOICES = [
    {"text": "import", "choices": [" os\n", " the of\n"], "gold": 0},
    {"text": "def main(", "choices": ["):\n", " is a\n"], "gold": 0},
    {"text": "for i in", "choices": [" list list", " range("], "gold": 1},
    {"text": "if x is not", "choices": [" return", " None:"], "gold": 1},
]


def task(name: str, kind: str, metric: str, **settings) -> ConfigurableTask:
    rows = datasets.Dataset.from_list(CHOICES)
    config = {
        "task": name,
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{text}}",
        "target_delimiter": "",
        "metric_list": [{"metric": metric}],
    }
    return ConfigurableTask(config=config | settings)


def test_a_task_of_the_harness_runs_whole(held, model):
    """Choices and perplexity, as it computes them of our answers."""
    tasks = [
        task("pick", "multiple_choice", "acc", doc_to_choice="choices", doc_to_target="gold"),
        task(
            "roll",
            "loglikelihood_rolling",
            "bits_per_byte",
            doc_to_target="{{text}}",
            doc_to_text="",
        ),
    ]
    done = simple_evaluate(held, tasks=tasks, bootstrap_iters=0, verbosity="ERROR")
    assert done is not None
    right = 0
    for row in CHOICES:
        totals = [likely(model, *seam(model, row["text"], one)) for one in row["choices"]]
        right += int(np.argmax(totals)) == row["gold"]
    assert done["results"]["pick"]["acc,none"] == right / 4
    nats = sum(held.loglikelihood_rolling(ask("x", *[(row["text"],) for row in CHOICES]), True))
    size = sum(len(row["text"].encode()) for row in CHOICES)
    assert done["results"]["roll"]["bits_per_byte,none"] == pytest.approx(-nats / size / np.log(2))
