"""The sampler against transformers, plain NumPy and the distributions it must draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats
from transformers.generation import logits_process as hf

from jaxinfer import sampler
from jaxinfer.request import MAX_BAD_WORD_TOKENS, SamplingParams

V = 41
SIGNIFICANCE = 1e-6
WARPED = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7, "temperature": 1.4},
    "min_p": {"min_p": 0.15},
    "typical": {"typical_p": 0.6},
    "all": {"temperature": 0.8, "top_k": 9, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
}

draw = jax.jit(sampler.sample, static_argnames="top_n")
process = jax.jit(sampler.process)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def seed():
    return int(np.random.SeedSequence().generate_state(1)[0])


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def batch(params, vocab=V, eos=(0,), **options):
    return sampler.pack(params, vocab, eos, **options)


def places(*positions):
    return jnp.asarray(positions, jnp.int32)


def seen(prompts, generated, vocab=V):
    """A History and the token lists it stands for, through `start_history` and `update`."""
    T = max(map(len, prompts))
    tokens = np.full((len(prompts), T), vocab - 1, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
    history = sampler.start_history(jnp.asarray(tokens), lengths, vocab)
    for column in np.array(generated, np.int32).T:
        active = jnp.ones((len(prompts),), jnp.bool_)
        history = sampler.update(history, jnp.asarray(column), active)
    return history, [[*p, *g] for p, g in zip(prompts, generated, strict=True)]


def through(processors, logits, tokens):
    """Rows of float64 scores after their own transformers processors."""
    rows = []
    for row, ids, own in zip(logits, tokens, processors, strict=True):
        scores = torch.tensor(row[None], dtype=torch.float64)
        for processor in own:
            scores = processor(torch.tensor([ids]), scores)
        rows.append(scores[0].numpy())
    return np.stack(rows)


def warpers_of(params):
    """The transformers warpers of `params` in the order of its `generate`."""
    made = []
    if params.temperature not in (0.0, 1.0):
        made.append(hf.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        made.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        made.append(hf.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        made.append(hf.MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        made.append(hf.TypicalLogitsWarper(params.typical_p))
    return made


def same(got, want, seed):
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want), err_msg=f"{seed=}")
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], 2e-5, 2e-5, err_msg=f"{seed=}")


def scores(rng, rows, vocab=V):
    return rng.normal(0, 2.5, (rows, vocab)).astype(np.float32)


class TestPenalties:
    def check(self, params, processors, rng, seed, new=4):
        """Each row of `params` against its processors, on one random history."""
        prompts = [list(rng.integers(0, V, rng.integers(1, 12))) for _ in params]
        generated = rng.integers(0, V, (len(params), new)).tolist()
        history, tokens = seen(prompts, generated)
        logits = scores(rng, len(params))
        if callable(processors):
            processors = [processors(row, len(p)) for row, p in zip(params, prompts, strict=True)]
        got = process(jnp.asarray(logits), batch(params), history)
        same(got, through(processors, logits, tokens), seed)
        assert not np.array_equal(np.asarray(got), logits)

    def test_bias(self, rng, seed):
        biases = [
            {int(i): float(rng.normal() * 20) for i in rng.choice(V, size, replace=False)}
            for size in (1, 7, V)
        ]
        params = [SamplingParams(logit_bias=bias) for bias in biases]
        processors = [
            [hf.SequenceBiasLogitsProcessor({(i,): b for i, b in bias.items()})] for bias in biases
        ]
        self.check(params, processors, rng, seed)

    def test_min_tokens_holds_eos_and_stop_tokens(self, rng, seed):
        params = [
            SamplingParams(min_tokens=n, stop_token_ids=ids, ignore_eos=ignore)
            for n, ids, ignore in (
                (0, (3,), False),
                (4, (3,), False),
                (5, (3, 9), False),
                (9, (), True),
            )
        ]

        def processors(row, prompt):
            held = torch.tensor([0, *row.stop_token_ids])
            return [hf.MinNewTokensLengthLogitsProcessor(prompt, row.min_tokens, held)]

        self.check(params, processors, rng, seed)

    def test_repetition(self, rng, seed):
        params = [SamplingParams(repetition_penalty=p) for p in (1.3, 0.5, 1.0, 20.0)]
        self.check(
            params,
            lambda row, _: [hf.RepetitionPenaltyLogitsProcessor(row.repetition_penalty)],
            rng,
            seed,
        )

    def test_bad_words(self, rng, seed):
        vocab, rows = 4, 24
        prompts = [list(rng.integers(0, vocab, rng.integers(1, 12))) for _ in range(rows)]
        history, tokens = seen(prompts, rng.integers(0, vocab, (rows, 2)).tolist(), vocab)
        words = [
            [list(map(int, rng.integers(0, vocab, rng.integers(1, 4)))) for _ in range(2)]
            for _ in range(rows - 1)
        ]
        ending = tokens[-1][1 - MAX_BAD_WORD_TOKENS :]
        words.append([[*map(int, ending), 2]])  # as long as they get, and surely matching
        params = [SamplingParams(bad_word_ids=tuple(map(tuple, own))) for own in words]
        logits = scores(rng, rows, vocab)
        got = process(jnp.asarray(logits), batch(params, vocab), history)
        truth = through([[hf.NoBadWordsLogitsProcessor(own)] for own in words], logits, tokens)
        same(got, truth, seed)
        assert np.isneginf(got[-1, 2])

    def test_presence_and_frequency(self, rng, seed):
        params = [
            SamplingParams(presence_penalty=p, frequency_penalty=f)
            for p, f in ((0.7, 0.0), (0.0, 0.4), (-1.5, 2.0), (0.0, 0.0))
        ]
        generated = rng.integers(0, 6, (4, 9)).tolist()
        history, _ = seen([[int(rng.integers(V))] for _ in params], generated)
        logits = scores(rng, 4)
        want = logits.astype(np.float64)
        for row, own, new in zip(want, params, generated, strict=True):
            for token in set(new):
                row[token] -= own.presence_penalty
            for token in new:
                row[token] -= own.frequency_penalty
        same(process(jnp.asarray(logits), batch(params), history), want, seed)

    def test_order_of_all(self, rng, seed):
        bias = {i: float(rng.normal() * 5) for i in range(V)}
        params = [
            SamplingParams(
                logit_bias=bias,
                bad_word_ids=((7,),),
                min_tokens=9,
                repetition_penalty=1.7,
                temperature=0.5,
                top_k=20,
                top_p=0.9,
                min_p=0.001,
                typical_p=0.95,
            )
        ] * 3

        def processors(row, prompt):
            return [
                hf.SequenceBiasLogitsProcessor({(i,): b for i, b in bias.items()}),
                hf.NoBadWordsLogitsProcessor([[7]]),
                hf.MinNewTokensLengthLogitsProcessor(prompt, 9, torch.tensor([0])),
                hf.RepetitionPenaltyLogitsProcessor(1.7),
                *warpers_of(row),
            ]

        self.check(params, processors, rng, seed)

    def test_without_history(self, rng, seed):
        params = [SamplingParams(logit_bias={3: 5.0}, top_k=4), SamplingParams(temperature=0)]
        assert not any(map(sampler.needs_history, params))
        for name, value in {
            "bad_word_ids": ((1,),),
            "min_tokens": 1,
            "repetition_penalty": 0.9,
            "presence_penalty": -0.1,
            "frequency_penalty": 0.1,
        }.items():
            assert sampler.needs_history(SamplingParams(**{name: value})), name
        logits = jnp.asarray(scores(rng, 2))
        bare = process(logits, batch(params), None)
        same(bare, process(logits, batch(params), sampler.empty_history(2, V)), seed)


class TestWarpers:
    def test_equal_transformers(self, rng, seed):
        params = [SamplingParams(**kind) for kind in WARPED.values() for _ in range(10)]
        logits = scores(rng, len(params))
        got = process(jnp.asarray(logits), batch(params), None)
        want = through([warpers_of(p) for p in params], logits, [[1]] * len(params))
        same(got, want, seed)

    def test_order_is_that_of_transformers_generate(self):
        config = transformers.GenerationConfig(
            do_sample=True, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, typical_p=0.9
        )
        llama = transformers.LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
        model = transformers.LlamaForCausalLM(llama)
        theirs = model._get_logits_processor(config, 1, torch.tensor([[1]]), None, [])
        ours = warpers_of(
            SamplingParams(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, typical_p=0.9)
        )
        assert [type(own) for own in theirs] == [type(own) for own in ours]

    def test_large_vocabulary_against_a_sort(self, rng, seed):
        vocab, rows = 128_256, 4
        logits = (scores(rng, rows, vocab) * 2).astype(jnp.bfloat16).astype(np.float32)  # ties
        logits += np.float32(rng.choice([-1e4, 0.0, 1e4]))
        k, p = 1000, 0.85
        params = [
            SamplingParams(top_k=k),
            SamplingParams(top_p=p),
            SamplingParams(top_k=vocab),
            SamplingParams(temperature=0, top_k=1),
        ]
        got = np.isfinite(process(jnp.asarray(logits), batch(params, vocab), None))
        order = np.sort(logits, axis=1)[:, ::-1]
        np.testing.assert_array_equal(got[0], logits[0] >= order[0, k - 1], err_msg=f"{seed=}")
        probs = np.exp(order[1].astype(np.float64) - order[1, 0])
        mass = np.cumsum(probs) / probs.sum()
        smallest, largest = (order[1, np.searchsorted(mass, p + e)] for e in (1e-5, -1e-5))
        least = logits[1][got[1]].min()
        assert smallest <= least <= largest, f"{seed=}"
        np.testing.assert_array_equal(got[1], logits[1] >= least, err_msg=f"{seed=}")
        assert got[2:].all()

    def test_ties_with_the_last_token_are_kept(self):
        logits = jnp.asarray([[3.0, 1.0, 0.0, 1.0, -0.0, 0.0]] * 3, jnp.float32)
        params = [SamplingParams(top_k=2), SamplingParams(top_k=4), SamplingParams(top_p=0.8)]
        kept = np.isfinite(process(logits, batch(params, 6), None))
        assert kept.tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0]]

    @pytest.mark.parametrize("name", ["top_p", "typical_p"])
    def test_tiny_fraction_keeps_one_token(self, name, rng, seed):
        params = [SamplingParams(**{name: 1e-9})] * 8
        kept = np.isfinite(process(jnp.asarray(scores(rng, 8)), batch(params), None))
        assert (kept.sum(1) == 1).all(), f"{seed=}"


class TestDistribution:
    ROWS = 10_000

    def chi_square(self, tokens, probs, seed):
        counts = np.bincount(tokens, minlength=len(probs))
        assert counts[probs == 0].sum() == 0, f"{seed=} drew a masked token"
        order = np.argsort(probs)
        expected, observed = probs[order] * len(tokens), counts[order]
        rare = np.searchsorted(np.cumsum(expected), 10)  # one bin of at least 10 for the rarest
        expected = np.append(expected[rare + 1 :], expected[: rare + 1].sum())
        observed = np.append(observed[rare + 1 :], observed[: rare + 1].sum())
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert stats.chi2.sf(statistic, max(len(expected) - 1, 1)) > SIGNIFICANCE, f"{seed=}"

    def test_mixed_batch(self, rng, seed):
        """All kinds in one batch, each with its own logits, interleaved, positions running."""
        kinds = [SamplingParams(seed=seed + i, **kind) for i, kind in enumerate(WARPED.values())]
        greedy = SamplingParams(temperature=0)
        kinds.append(greedy)
        logits = scores(rng, len(kinds), 13)
        lane = np.tile(np.arange(len(kinds)), self.ROWS)
        sampling = jax.tree.map(lambda leaf: leaf[lane], batch(kinds, 13))
        positions = jnp.asarray(np.repeat(np.arange(self.ROWS), len(kinds)), jnp.int32)
        tokens = np.asarray(draw(jnp.asarray(logits[lane]), sampling, None, positions).token)
        want = through([warpers_of(k) for k in kinds], logits, [[1]] * len(kinds))
        for i, kind in enumerate(kinds):
            probs = np.exp(want[i] - want[i].max())
            probs = np.eye(13)[logits[i].argmax()] if kind is greedy else probs / probs.sum()
            self.chi_square(tokens[lane == i], probs, seed)

    def test_keys_of_a_request_and_its_completions_are_independent(self, rng, seed):
        """Pairs of draws (two completions; two positions) fill the product distribution."""
        sampling = batch([SamplingParams(seed=seed)] * 2, 5, indices=(0, 1))
        lane = np.tile([0, 1], self.ROWS)
        sampling = jax.tree.map(lambda leaf: leaf[lane], sampling)
        positions = jnp.asarray(np.repeat(np.arange(self.ROWS), 2), jnp.int32)
        row = scores(rng, 1, 5) / 3
        logits = jnp.asarray(np.repeat(row, len(lane), axis=0))
        first, second = np.asarray(draw(logits, sampling, None, positions).token).reshape(-1, 2).T
        probs = np.exp(row[0].astype(np.float64))
        pairs = np.outer(probs, probs).ravel() / probs.sum() ** 2
        self.chi_square(first * 5 + second, pairs, seed)
        self.chi_square(first[::2] * 5 + first[1::2], pairs, seed)

    def test_each_seed_is_a_fresh_draw(self, rng, seed):
        sampling = batch([SamplingParams()] * 2000, 3, rng=rng)
        logits = jnp.asarray(np.log([[0.5, 0.3, 0.2]] * 2000), jnp.float32)
        tokens = draw(logits, sampling, None, jnp.zeros((2000,), jnp.int32)).token
        self.chi_square(np.asarray(tokens), np.array([0.5, 0.3, 0.2]), seed)


class TestSeeds:
    def test_same_token_in_any_row_of_any_batch(self, rng, seed):
        one = SamplingParams(seed=seed, temperature=1.5, top_p=0.98)
        logits = scores(rng, 1)[0] / 4
        tokens = set()
        for size, row in ((1, 0), (2, 1), (5, 0), (5, 3)):
            params = [SamplingParams(seed=i, top_k=3, min_tokens=1) for i in range(size)]
            params[row] = one
            others = scores(rng, size)
            others[row] = logits
            positions = rng.integers(0, 1000, size)
            positions[row] = 77
            history = sampler.empty_history(size, V)
            got = draw(jnp.asarray(others), batch(params), history, places(*positions))
            tokens.add(int(got.token[row]))
        assert len(tokens) == 1, f"{seed=}"

    def test_position_completion_and_seed_change_the_draw(self, seed):
        logits = jnp.zeros((20, 128), jnp.float32)
        base = [SamplingParams(seed=seed)] * 20

        def draws(params, positions, **options):
            sampling = batch(params, 128, **options)
            return len(set(draw(logits, sampling, None, positions).token.tolist()))

        same_place, places_apart = places(*[5] * 20), jnp.arange(20, dtype=jnp.int32)
        assert draws(base, same_place) == 1
        assert draws(base, places_apart) > 5
        assert draws(base, same_place, indices=range(20)) > 5
        assert draws([SamplingParams(seed=seed + i) for i in range(20)], same_place) > 5
        assert draws([SamplingParams()] * 20, same_place) > 5

    def test_keys(self, seed):
        key = sampler.request_key(seed, 2)
        np.testing.assert_array_equal(batch([SamplingParams(seed=seed)], indices=[2]).key, [key])
        assert (
            len({tuple(sampler.request_key(s, n)) for s in (0, 1, 2**64 - 1) for n in (0, 1)}) == 6
        )
        first, second = (
            batch([SamplingParams()] * 2, rng=np.random.default_rng(seed)).key for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first[0], first[1])

    def test_position_keys_are_folded_in(self, seed):
        sampling = batch([SamplingParams(seed=seed)] * 2)
        got = jax.random.key_data(sampler.position_keys(sampling, places(3, 9)))
        key = jax.random.wrap_key_data(jnp.asarray(sampling.key[1]), impl="threefry2x32")
        np.testing.assert_array_equal(got[1], jax.random.key_data(jax.random.fold_in(key, 9)))


class TestSample:
    def test_greedy_is_the_first_of_the_largest_edited_logits(self, rng, seed):
        logits = rng.integers(0, 3, (6, V)).astype(np.float32)
        greedy = SamplingParams(temperature=0, top_k=2, top_p=0.1, typical_p=0.2)
        biased = SamplingParams(temperature=0, logit_bias={17: 50.0})
        got = draw(jnp.asarray(logits), batch([greedy] * 6), None, places(*range(6))).token
        np.testing.assert_array_equal(got, logits.argmax(1), err_msg=f"{seed=}")
        mixed = batch([greedy, biased, SamplingParams()] * 2)
        got = draw(jnp.asarray(logits), mixed, None, places(*range(6))).token
        np.testing.assert_array_equal(got[::3], logits.argmax(1)[::3], err_msg=f"{seed=}")
        np.testing.assert_array_equal(got[1::3], 17)

    def test_one_program_for_any_mix(self, rng):
        traces = []

        @jax.jit
        def step(*arguments):
            traces.append(1)
            return sampler.sample(*arguments, top_n=2)

        full = {
            "logit_bias": {1: 2.0},
            "bad_word_ids": ((1, 2), (3,)),
            "min_tokens": 3,
            "stop_token_ids": (4,),
            "repetition_penalty": 1.1,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "logprobs_mode": "processed",
        }
        history = sampler.empty_history(2, V)
        plain = {"temperature": 0}
        for kinds in ((plain, plain), *((kind, full | kind) for kind in WARPED.values())):
            params = [SamplingParams(**kind) for kind in kinds]
            logits = jnp.asarray(scores(rng, 2))
            got = step(logits, batch(params), history, places(1, 2))
            assert ((got.token >= 0) & (got.token < V)).all()
        assert len(traces) == 1

    def test_plain_greedy_batch_is_only_an_argmax_and_nothing_sorts(self, rng):
        params = [SamplingParams(temperature=0)]
        history = sampler.empty_history(1, V)
        arguments = (jnp.asarray(scores(rng, 1)), batch(params), history, places(0))
        jaxpr = jax.make_jaxpr(sampler.sample)(*arguments).jaxpr
        assert "sort[" not in str(jaxpr)
        wide = [
            equation.primitive.name
            for equation in jaxpr.eqns
            if any(getattr(v.aval, "shape", ()) == (1, V) for v in equation.outvars)
        ]
        assert wide == []
        (switch,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "cond")
        greedy, _ = switch.params["branches"]
        assert "reduce_max" in str(greedy)
        for other in ("scatter", "random", "exp", "log", "while[", "cond["):
            assert other not in str(greedy), other

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_bad_rows_disturb_no_other(self, value, rng, seed):
        kinds = [SamplingParams(seed=i, **kind) for i, kind in enumerate(WARPED.values())]
        params = kinds + kinds + [SamplingParams(temperature=0)]
        B = len(params)
        history = sampler.empty_history(B, V)
        clean = scores(rng, B)
        broken = clean.copy()
        broken[: len(kinds)] = value
        broken[0, 1:] = 0.0
        positions = jnp.arange(B, dtype=jnp.int32)
        want = draw(jnp.asarray(clean), batch(params), history, positions, top_n=3)
        got = draw(jnp.asarray(broken), batch(params), history, positions, top_n=3)
        if value == np.inf:
            assert got.token[0] == 0
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a[len(kinds) :], b[len(kinds) :], err_msg=f"{seed=}")
        assert ((got.token >= 0) & (got.token < V)).all()

    def test_logprobs(self, rng, seed):
        kind = {"seed": seed, "temperature": 0.7, "top_k": 6, "logit_bias": {3: 4.0}}
        greedy = {"temperature": 0, "repetition_penalty": 1.8}
        params = [
            SamplingParams(logprobs_mode=mode, **own)
            for own in (kind, greedy)
            for mode in ("raw", "processed")
        ]
        history, _ = seen([[1, 2, 3, 4]] * 4, [[7, 8]] * 4)
        logits = jnp.asarray(scores(rng, 4))
        sampling = batch(params)
        got = draw(logits, sampling, history, places(1, 1, 1, 1), top_n=8)
        source = np.array(process(logits, sampling, history), np.float64)
        source[::2] = logits[::2]
        with np.errstate(divide="ignore"):
            want = np.log(np.exp(source) / np.exp(source).sum(1, keepdims=True))
        rows = np.arange(4)[:, None]
        same(got.logprob, want[rows[:, 0], got.token], seed)
        same(got.top_logprobs, -np.sort(-want, axis=1)[:, :8], seed)
        same(got.top_logprobs, want[rows, got.top_ids], seed)
        assert np.isneginf(got.top_logprobs[1]).any()
        bare = draw(logits, sampling, history, places(1, 1, 1, 1))
        np.testing.assert_array_equal(bare.token, got.token)
        assert bare.logprob is None
        assert bare.top_ids is None
        alone = draw(logits, sampling, history, places(1, 1, 1, 1), top_n=0)
        np.testing.assert_allclose(alone.logprob, got.logprob, 1e-6)
        assert alone.top_ids.shape == (4, 0)

    def test_greedy_batch_has_raw_logprobs(self, rng, seed):
        logits = scores(rng, 3)
        sampling = batch([SamplingParams(temperature=0)] * 3)
        got = draw(jnp.asarray(logits), sampling, None, places(0, 0, 0), top_n=1)
        same(got.logprob, jax.nn.log_softmax(jnp.asarray(logits)).max(1), seed)
        np.testing.assert_array_equal(got.top_ids[:, 0], got.token)

    def test_bfloat16_logits_are_taken_as_float32(self, rng, seed):
        logits = jnp.asarray(scores(rng, 2)).astype(jnp.bfloat16)
        sampling = batch([SamplingParams(seed=1, top_p=0.9), SamplingParams(temperature=0)])
        for top_n in (None, 2):
            got = draw(logits, sampling, None, places(0, 1), top_n=top_n)
            want = draw(logits.astype(jnp.float32), sampling, None, places(0, 1), top_n=top_n)
            jax.tree.map(np.testing.assert_array_equal, got, want)

    def test_vocabulary_over_all_devices(self, rng, seed):
        vocab = 8 * jax.device_count()
        params = [SamplingParams(seed=i, **kind) for i, kind in enumerate(WARPED.values())]
        params += [SamplingParams(temperature=0), SamplingParams(repetition_penalty=1.2, seed=0)]
        B = len(params)
        history, _ = seen([[1, 2]] * B, [[3]] * B, vocab)
        logits = jnp.asarray(scores(rng, B, vocab))
        positions = jnp.arange(B, dtype=jnp.int32)
        want = draw(logits, batch(params, vocab), history, positions, top_n=2)
        mesh = Mesh(np.array(jax.devices()), ("model",))
        wide = NamedSharding(mesh, PartitionSpec(None, "model"))
        split = history.replace(
            prompt_seen=jax.device_put(history.prompt_seen, wide),
            counts=jax.device_put(history.counts, wide),
        )
        logits = jax.device_put(logits, wide)
        got = draw(logits, batch(params, vocab), split, positions, top_n=2)
        np.testing.assert_array_equal(got.token, want.token, err_msg=f"{seed=}")
        program = draw.lower(logits, batch(params, vocab), split, positions).compile().as_text()
        assert "all-gather" not in program
        np.testing.assert_allclose(got.top_logprobs, want.top_logprobs, 1e-5, 1e-5)

    def test_inside_vmap(self, rng, seed):
        logits = jnp.asarray(scores(rng, 6).reshape(3, 2, V))
        sampling = batch([SamplingParams(seed=4, top_k=7), SamplingParams(temperature=0)])
        positions = jnp.arange(6, dtype=jnp.int32).reshape(3, 2)
        got = jax.vmap(lambda x, p: sampler.sample(x, sampling, None, p).token)(logits, positions)
        want = [draw(x, sampling, None, p).token for x, p in zip(logits, positions, strict=True)]
        np.testing.assert_array_equal(got, want, err_msg=f"{seed=}")


class TestHistory:
    def test_update_and_resume_equal_counting(self, rng, seed):
        rows, length = 3, 12
        tokens = rng.integers(0, V, (rows, length)).astype(np.int32)
        prompts, stop = np.array([2, 5, 9]), np.array([12, 5, 10])
        history = sampler.start_history(jnp.asarray(tokens), jnp.asarray(prompts, jnp.int32), V)
        step = jax.jit(sampler.update)
        for i in range(length):
            place = prompts + i
            active = jnp.asarray(place < stop)
            column = tokens[np.arange(rows), np.minimum(place, length - 1)]
            history = step(history, jnp.asarray(column), active)
        resumed = sampler.start_history(
            jnp.asarray(tokens), jnp.asarray(stop, jnp.int32), V, jnp.asarray(prompts, jnp.int32)
        )
        jax.tree.map(np.testing.assert_array_equal, history, resumed)
        for row in range(rows):
            prompt, new = tokens[row, : prompts[row]], tokens[row, prompts[row] : stop[row]]
            np.testing.assert_array_equal(
                np.flatnonzero(history.prompt_seen[row]), np.unique(prompt), err_msg=f"{seed=}"
            )
            np.testing.assert_array_equal(history.counts[row], np.bincount(new, minlength=V))
            assert history.generated[row] == len(new)
            line = [-1] * MAX_BAD_WORD_TOKENS + [*prompt, *new]
            assert history.recent[row].tolist() == line[1 - MAX_BAD_WORD_TOKENS :]

    def test_prompts_read_in_parts(self, rng, seed):
        prompts = [list(map(int, rng.integers(0, V, size))) for size in (3, 8)]
        whole, _ = seen(prompts, [[1], [1]])
        history = sampler.empty_history(2, V)
        for part in (slice(0, 3), slice(3, 8)):
            pairs = [(row, token) for row in (0, 1) for token in prompts[row][part]]
            rows, tokens = places(*(r for r, _ in pairs), 1), places(*(t for _, t in pairs), -1)
            history = jax.jit(sampler.see_prompt)(history, rows, tokens, tokens >= 0)
        np.testing.assert_array_equal(history.prompt_seen, whole.prompt_seen, err_msg=f"{seed=}")
        assert not history.counts.any()

    def test_set_rows_replaces_slots_and_drops_the_rest(self, rng):
        write = jax.jit(sampler.set_rows)
        whole = [SamplingParams(seed=i, temperature=0.5, logit_bias={i: 1.0}) for i in range(4)]
        new = [SamplingParams(seed=9, top_k=3, bad_word_ids=((1, 2),)), SamplingParams(seed=10)]
        got = write(batch(whole), places(2, 4), batch(new))
        jax.tree.map(np.testing.assert_array_equal, got, batch([*whole[:2], new[0], whole[3]]))
        history, _ = seen([[1], [2], [3], [4]], [[5]] * 4)
        other, _ = seen([[6, 7], [8]], [[9]] * 2)
        got = write(history, places(0, 7), other)
        want, _ = seen([[6, 7], [2], [3], [4]], [[9], [5], [5], [5]])
        jax.tree.map(np.testing.assert_array_equal, got, want)


class TestPack:
    def test_stops(self):
        stop = {"stop_token_ids": (5, 6)}
        params = [SamplingParams(), SamplingParams(**stop), SamplingParams(ignore_eos=True, **stop)]
        sampling = batch(params, eos=(0, 2))
        ended = {t: sampler.stops(sampling, places(t, t, t)).tolist() for t in (0, 2, 5, 7)}
        eos = [True, True, False]
        assert ended == {0: eos, 2: eos, 5: [False, True, True], 7: [False] * 3}

    def test_greedy_never_stops(self, rng):
        logits = scores(rng, 3)
        sampling = sampler.greedy(3)
        tokens = draw(jnp.asarray(logits), sampling, None, places(0, 1, 2)).token
        np.testing.assert_array_equal(tokens, logits.argmax(1))
        assert not sampler.stops(sampling, tokens).any()

    def test_no_rows(self):
        assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(batch([])))

    @pytest.mark.parametrize(
        ("params", "options", "message"),
        [
            ({"stop_token_ids": (V,)}, {}, "stop_token_ids: required .* vocabulary size"),
            ({"logit_bias": {V: 1.0}}, {}, "logit_bias: required"),
            ({"bad_words": ("no",)}, {}, "bad_words: required token ids; received the texts"),
            ({}, {"indices": (0, 1)}, "indices: required one per row, 1"),
            ({}, {"eos": (V,)}, "eos_ids: required at most"),
            ({}, {"eos": tuple(range(sampler.MAX_EOS_IDS + 1))}, "eos_ids: required at most"),
        ],
    )
    def test_refuses(self, params, options, message):
        with pytest.raises(ValueError, match=message):
            batch([SamplingParams(**params)], **options)
