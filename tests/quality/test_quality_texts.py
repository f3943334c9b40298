"""A whole comparison: equal sides, different sides, and what cannot be compared."""

import math

import numpy as np
import pytest

import jaxinfer
from jaxinfer import perplexity, quality
from jaxinfer.quality import continuations
from pallas_kernels import dense
from pallas_kernels.backend import kernels
from pallas_kernels.ragged_attention import xla
from tests import oracle, tiny

SIZES = dict(size=321, window=24, stride=9, prompts=3, prompt_tokens=7, new_tokens=6)


def side(seed, **changes) -> quality.Side:
    config = tiny.config(**changes)
    return quality.Side(quality.Setting(), jaxinfer.Model(tiny.params(config, seed), config))


@pytest.fixture
def ids(rng):
    return tiny.prompts(rng, [70])[0]


def test_equal_settings_do_not_differ(ids, seed):
    found = quality.compare(side(seed), side(seed), ids, **SIZES)
    described = found.describe()
    assert described["kl"] == {"mean": 0, "error": 0, "median": 0, "p99": 0, "max": 0}
    assert described["top1_agreement"] == described["top5_overlap"] == 1
    assert described["acceptance"] == pytest.approx(1)
    assert described["max_delta_logprob"] == described["perplexity_rise"] == 0
    assert described["continuations"]["first_divergence"] == [None] * 3
    assert described["continuations"]["identical"] == 3
    assert described["verdict"] == "indistinguishable"
    assert {k: v for k, v in described["reference"].items() if k != "setting"} == {
        k: v for k, v in described["candidate"].items() if k != "setting"
    }


def test_different_models_have_their_own_perplexities_and_continuations(ids, seed):
    sides = side(seed), side(seed + 1)
    seen = []
    described = quality.compare(
        *sides, ids, **SIZES, track=lambda parts: (seen.extend(parts), parts)[1]
    ).describe()
    parts = perplexity.windows(len(ids), 24, 9)
    assert seen == parts
    for name, one in zip(("reference", "candidate"), sides, strict=True):
        model = one.model
        own = perplexity.measure(
            lambda part, model=model: [x or 0.0 for x in model.score(part)[0].logprobs],
            ids,
            parts,
            size=321,
        )
        assert described[name]["perplexity"] == pytest.approx(own.perplexity, rel=1e-4)
        assert described[name]["bits_per_byte"] == pytest.approx(own.bits_per_byte, rel=1e-4)
        assert described[name]["weight_bytes"] > 4 * 101 * 48
        assert described[name]["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    ratio = described["candidate"]["perplexity"] / described["reference"]["perplexity"]
    assert described["perplexity_rise"] == pytest.approx(ratio - 1, rel=1e-4)
    assert described["tokens"] == 69
    starts = continuations.prompts_from(ids, 3, 7)
    told = [
        [oracle.greedy(s.model.params, s.model.config, tuple(p), 6) for p in starts] for s in sides
    ]
    expected = [
        next((i for i in range(6) if a[i] != b[i]), None) for a, b in zip(*told, strict=True)
    ]
    assert described["continuations"]["first_divergence"] == expected


def test_kernels_against_plain_xla(ids, seed, monkeypatch):
    """Each side's programs are traced under its own setting, and say the same but for rounding."""
    seen = []
    attend = dense.attend
    monkeypatch.setattr(
        dense, "attend", lambda *a, **k: (seen.append(kernels()), attend(*a, **k))[1]
    )
    monkeypatch.setattr(xla, "attend", dense.attend)
    config = tiny.config()
    params = tiny.params(config, seed)
    sides = [
        quality.Side(quality.Setting.parse(f"kernels={value}"), jaxinfer.Model(params, config))
        for value in ("off", "on")
    ]
    described = quality.compare(*sides, ids, **SIZES).describe()
    assert set(seen) == {True, False}
    assert kernels()
    assert described["reference"]["setting"] == "kernels=off"
    assert described["continuations"]["identical"] == 3
    assert 0 <= described["kl"]["mean"] < 1e-6


def test_sides_that_differ_in_kernels_alone_share_their_parameters():
    with pytest.raises(ValueError, match="kernels needs on or off, got 'xla'"):
        quality.Setting.parse("kernels=xla")
    ours = quality.load(quality.Setting.parse(""), progress=False)
    theirs = quality.load_beside(ours, quality.Setting.parse("kernels=off"), progress=False)
    assert theirs.model is not ours.model
    assert theirs.model.params.embed is ours.model.params.embed


def test_a_reference_that_is_kept_is_read_once_and_compares_alike(ids, seed, monkeypatch):
    one, others = side(seed), (side(seed + 1), side(seed + 2))
    sizes = {**SIZES, "prompts": 0}
    alone = [quality.compare(one, other, ids, **sizes).describe() for other in others]
    kept, runs = quality.Kept(one), []
    monkeypatch.setattr(kept, "_run_hidden", counted(kept._run_hidden, runs))
    found = [quality.compare(one, o, ids, **sizes, reader=kept).describe() for o in others]
    assert found == alone
    assert len(runs) == len(perplexity.windows(len(ids), 24, 9))
    both = quality.together(found)
    assert both["reference"] == alone[0]["reference"]
    assert [row["kl"] for row in both["candidates"]] == [row["kl"] for row in alone]
    assert both["tokens"] == 69


def counted(run, runs):
    def wrapper(*args):
        runs.append(args)
        return run(*args)

    return wrapper


def test_decoding_is_timed_on_request(ids, seed):
    one = side(seed)
    plain = quality.compare(one, one, ids, **{**SIZES, "prompts": 0}).describe()
    assert plain["reference"]["decode_tokens_per_s"] is None
    timed = quality.timed(one, repeats=2)
    found = quality.compare(timed, timed, ids, **{**SIZES, "prompts": 0}).describe()
    assert found["candidate"]["decode_tokens_per_s"] == pytest.approx(1 / timed.decode_s)
    assert 0 < timed.decode_s < 10


def test_without_prompts_there_are_no_continuations(ids, seed):
    found = quality.compare(side(seed), side(seed), ids, **{**SIZES, "prompts": 0}).describe()
    assert found["continuations"]["prompts"] == 0
    assert found["continuations"]["least"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(window=129), "at most 128 positions, got 129"),
        (dict(stride=24), "1 <= stride < window"),
        (dict(prompts=-1), "prompts >= 0"),
        (dict(new_tokens=122), "at most 128 positions together, got 7 and 122"),
    ],
)
def test_bounds_are_named(ids, seed, changes, words):
    one = side(seed)
    with pytest.raises(ValueError, match=words):
        quality.compare(one, one, ids, **{**SIZES, **changes})


def test_prompts_lie_at_even_distances():
    ids = list(range(100))
    found = continuations.prompts_from(ids, 4, 10)
    assert [p[0] for p in found] == [0, 30, 60, 90]
    assert all(p == list(range(p[0], p[0] + 10)) for p in found)
    assert continuations.prompts_from(ids, 1, 10) == [ids[:10]]
    assert continuations.prompts_from(ids[:5], 3, 10) == [ids[:5]]
    assert len(continuations.prompts_from(ids[:12], 9, 10)) == 3


def test_first_divergence(rng):
    ours = rng.integers(0, 50, 20).tolist()
    assert quality.first_divergence(ours, list(ours)) is None
    for at in (0, 7, 19):
        theirs = [*ours[:at], ours[at] + 1, *reversed(ours[at + 1 :])]
        assert quality.first_divergence(ours, theirs) == at


def test_numbers_that_are_not_finite_are_rejected(ids, seed):
    good, bad = side(seed), side(seed)
    norm = bad.model.params.norm
    broken = norm.replace(scale=norm.scale.at[3].set(math.nan))
    bad = quality.Side(
        bad.setting, jaxinfer.Model(bad.model.params.replace(norm=broken), bad.model.config)
    )
    found = quality.compare(good, bad, ids, **{**SIZES, "prompts": 0})
    assert not np.isfinite(found.distances.kl).all()
    assert found.verdict.level == "do not use"
    assert "not finite" in found.verdict.sentence
