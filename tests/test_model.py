"""Text in, text out: `Model` over a fresh random model and tokenizer."""

import re
import threading

import numpy as np
import pytest

from jaxinfer import FinishReason, Model, SamplingParams, Stream, grammar
from jaxinfer.grammar.compiler import Compiler
from jaxinfer.step import Programs
from jaxinfer.tokenizer import Tokenizer
from tests import fresh_tokenizers, oracle, tiny

NEW = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = fresh_tokenizers.byte_level(np.random.default_rng(seed), ["<s>", "</s>"])
    fresh_tokenizers.write_folder(
        folder, backend, {"bos_token": "<s>", "eos_token": "</s>"}, "llama"
    )
    tokenizer = Tokenizer.load(folder)
    config = tiny.config(vocab_size=tokenizer.vocab_size)
    return Model(tiny.params(config, seed), config, tokenizer, chunk=16)


def test_text_is_that_of_the_oracles_tokens(model):
    texts = ["hello world", "a", "one two three four five six"]
    found = model.generate(texts, temperature=0, max_new_tokens=NEW, ignore_eos=True)
    for text, completion in zip(texts, found, strict=True):
        prompt = model.tokenizer.encode(text)
        expected = oracle.greedy(model.params, model.config, prompt, NEW)
        assert completion.prompt_token_ids == tuple(prompt)
        assert completion.token_ids == tuple(expected)
        assert completion.finish_reason is FinishReason.LENGTH
        whole = model.tokenizer.decode([*prompt, *expected])
        assert completion.text == whole[len(model.tokenizer.decode(prompt)) :]
        assert completion.ttft_s > 0


def test_streamed_pieces_add_up(model):
    params = SamplingParams(temperature=0.8, seed=5, max_new_tokens=NEW, n=2)
    whole = model.generate(["hello", "world"], params)
    pieces = {}
    for chunk in model.stream(["hello", "world"], params):
        pieces[chunk.index] = pieces.get(chunk.index, "") + chunk.text
    assert [pieces[i] for i in range(4)] == [completion.text for completion in whole]
    assert [c.prompt_token_ids for c in whole[:2]] == [whole[0].prompt_token_ids] * 2


def test_an_answer_follows_its_grammar(model):
    compiler = Compiler(model.tokenizer, vocab_size=model.config.vocab_size)
    compiled = compiler.compile(grammar.regex("[0-9]{2}-(yes|no)"))
    params = SamplingParams(temperature=1.5, seed=3, max_new_tokens=30, n=2)
    found = model.generate(["hello", "world"], params, grammar=compiled)
    compiler.close()
    assert all(re.fullmatch(r"\d\d-(yes|no)", completion.text) for completion in found)
    assert all(completion.finish_reason is FinishReason.STOP for completion in found)


def test_completions_of_a_seed_differ_and_repeat(model):
    params = SamplingParams(temperature=1.5, seed=11, max_new_tokens=NEW, n=3)
    first, second = (model.generate("hello", params) for _ in range(2))
    assert [c.token_ids for c in first] == [c.token_ids for c in second]
    assert len({c.token_ids for c in first}) == 3
    assert model.generate("hello", params, n=1)[0].token_ids == first[0].token_ids


def test_a_stop_string_ends_the_text_before_it(model):
    (plain,) = model.generate("hello", temperature=0, max_new_tokens=NEW, ignore_eos=True)
    stop = next(
        plain.text[i : i + 2]
        for i in range(1, len(plain.text) - 1)
        if plain.text[i : i + 2].isprintable()
    )
    (found,) = model.generate(
        "hello", temperature=0, max_new_tokens=NEW, ignore_eos=True, stop=(stop,)
    )
    assert found.text == plain.text[: plain.text.index(stop)]
    assert found.finish_reason is FinishReason.STOP
    assert plain.token_ids[: len(found.token_ids)] == found.token_ids


def test_bad_words_are_not_said(model):
    (plain,) = model.generate("hello", temperature=0, max_new_tokens=NEW, ignore_eos=True)
    banned = (plain.token_ids[3],)
    before = plain.token_ids.index(banned[0])
    (found,) = model.generate(
        "hello", temperature=0, max_new_tokens=NEW, ignore_eos=True, bad_word_ids=(banned,)
    )
    assert banned[0] not in found.token_ids
    assert found.token_ids[:before] == plain.token_ids[:before]


def test_scores_are_those_of_generation(model):
    (found,) = model.generate(
        "hello world", temperature=0, max_new_tokens=NEW, ignore_eos=True, logprobs=0
    )
    (scored,) = model.score([[*found.prompt_token_ids, *found.token_ids]])
    assert scored.logprobs[0] is None
    np.testing.assert_allclose(scored.logprobs[-NEW:], found.logprobs, atol=1e-4)


def test_a_closed_stream_leaves_the_model_usable(model):
    stream = model.stream("hello", temperature=0, max_new_tokens=NEW)
    next(stream)
    stream.close()
    again, fresh = (model.generate("hello", temperature=0, max_new_tokens=NEW)[0] for _ in range(2))
    assert again.token_ids == fresh.token_ids


def test_calls_from_several_threads_do_not_meet(model):
    alone = [
        model.generate(text, temperature=0, max_new_tokens=NEW)[0].token_ids
        for text in ("one", "two")
    ]
    found = {}

    def work(text):
        found[text] = [
            model.generate(text, temperature=0, max_new_tokens=NEW)[0].token_ids for _ in range(3)
        ]

    threads = [threading.Thread(target=work, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"one": [alone[0]] * 3, "two": [alone[1]] * 3}


def test_sizes_that_alternate_do_not_compile_again(model, monkeypatch):
    compiled, program_of = [], Programs._program

    def count(self, *args):
        compiled.append(args)
        return program_of(self, *args)

    monkeypatch.setattr(Programs, "_program", count)
    fresh = Model(model.params, model.config, max_slots=8, chunk=16)
    batches = [[[5, 6, 7]] * rows for rows in (1, 2, 4)]  # more sizes than idle engines are kept
    found = [
        [fresh.generate(batch, temperature=0, max_new_tokens=NEW) for batch in batches]
        for _ in range(2)
    ]
    first = len(compiled)
    assert first > 0
    again = [fresh.generate(batch, temperature=0, max_new_tokens=NEW) for batch in batches]
    assert len(compiled) == first
    texts = [[[c.token_ids for c in batch] for batch in run] for run in (*found, again)]
    assert texts[0] == texts[1] == texts[2]


def test_a_conversation_is_kept_in_the_cache(model):
    template = {"template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"}
    turns = [{"role": "user", "content": "hello world"}]
    answer = model.chat(turns, temperature=0, max_new_tokens=NEW, template=template)
    turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "more"}]
    kept = model.chat(turns, temperature=0, max_new_tokens=NEW, template=template)
    fresh = Model(model.params, model.config, model.tokenizer, chunk=16)
    assert (
        fresh.chat(turns, temperature=0, max_new_tokens=NEW, template=template).token_ids
        == kept.token_ids
    )


def test_streams_go_on_past_the_context(model):
    new = model.config.max_position + 20
    with pytest.raises(ValueError, match="stream=Stream"):
        model.generate("hello", temperature=0, max_new_tokens=new)
    (found,) = model.generate(
        "hello",
        temperature=0,
        max_new_tokens=new,
        ignore_eos=True,
        stream=Stream(window=16, sinks=2),
    )
    assert len(found.token_ids) == new


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "at least one token"),
        ([5, 10**6], {}, r"in 0 \.\. "),
        ("hello", {"temperature": -1.0}, "temperature"),
        ("hello", {"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_input_is_named(model, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate([prompt], **settings)


def test_a_refused_request_takes_its_neighbours_back(model):
    good = model.generate("hello", temperature=0, max_new_tokens=NEW)[0]
    with pytest.raises(ValueError, match="stop_token_ids"):
        model.generate(
            ["hello", "world"], temperature=0, max_new_tokens=NEW, stop_token_ids=(10**6,)
        )
    assert model.generate("hello", temperature=0, max_new_tokens=NEW)[0].token_ids == good.token_ids


def test_without_a_tokenizer_ids_work_and_text_does_not(model):
    bare = Model(model.params, model.config)
    (found,) = bare.generate([[5, 6, 7]], temperature=0, max_new_tokens=3)
    assert len(found.token_ids) == 3
    assert found.text == ""
    with pytest.raises(ValueError, match="no tokenizer"):
        bare.generate("hello")
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        bare.generate([[5]], stop=("x",), max_new_tokens=3)
