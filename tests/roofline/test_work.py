"""Counts of FLOPs and bytes, against the real layout and against loops over positions."""

import dataclasses
import math
import random

import jax
import numpy as np
import pytest

from jaxinfer import roofline
from jaxinfer.cache import plan_rings
from jaxinfer.config import LayerConfig, ModelConfig, Rope
from jaxinfer.models import decoder, presets
from jaxinfer.models.registry import family_of
from jaxinfer.roofline import formats, kv, work
from jaxinfer.roofline.memory import cache_bytes, weight_bytes
from tests.models.small_configs import SMALL


def random_config(rng: random.Random, shards: int = 1) -> ModelConfig:
    K = rng.choice([1, 2, 4])
    N = K * rng.choice([1, 2, 4]) * shards
    H = rng.choice([8, 16])
    windows = [rng.choice([None, rng.randint(1, 40)]) for _ in range(rng.randint(1, 4))]
    return ModelConfig(
        family="llama",
        vocab_size=rng.randint(50, 300),
        d_model=rng.randint(20, 90),
        d_ff=8 * rng.randint(3, 20),
        num_heads=N,
        num_kv_heads=K,
        head_dim=H,
        layers=tuple(LayerConfig(window=w, rope=Rope(rotary_dim=H)) for w in windows),
        max_position=512,
        norm=rng.choice(["rms", "layer"]),
        norm_style=rng.choice(["pre", "post", "sandwich"]),
        qk_norm=rng.choice(["none", "head", "full"]),
        gated=rng.random() < 0.7,
        qkv_bias=rng.random() < 0.5,
        out_bias=rng.random() < 0.5,
        mlp_bias=rng.random() < 0.5,
        tied=rng.random() < 0.5,
        learned_positions=rng.choice([0, 512]),
    )


@pytest.fixture
def rng():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"{seed=}")
    return random.Random(seed)


def stored_bytes(config, shards=1):
    """What real arrays of the parameters take."""
    params = jax.eval_shape(
        lambda: decoder.init(config, jax.random.key(0), jax.numpy.bfloat16, shards)
    )
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))


@pytest.mark.parametrize("family", SMALL)
def test_weights_of_every_family_are_those_of_real_parameters(family):
    config = family_of(SMALL[family]).read(SMALL[family])
    assert weight_bytes(config) == stored_bytes(config)


def test_weights_of_random_models(rng):
    for _ in range(20):
        config = random_config(rng)
        assert weight_bytes(config) == stored_bytes(config)
        assert weight_bytes(config, "float32") == 2 * weight_bytes(config)


def test_shards_hold_all_of_it(rng):
    """Together they hold the padded and repeated parameters, and what is not split in every one."""
    for shards in (2, 4):
        config = random_config(rng, shards)
        leaves = decoder.leaves(config, shards)
        split = sum(2 * math.prod(x.shape) for x in leaves if set(x.letters) & set("NKFV"))
        whole = sum(2 * math.prod(x.shape) for x in leaves if not set(x.letters) & set("NKFV"))
        assert weight_bytes(config, shards=shards) == pytest.approx(split / shards + whole)
        assert split + whole == stored_bytes(config, shards)


def test_rounded_weights(rng):
    config = random_config(rng)
    quantizable = [leaf.shape for leaf in decoder.leaves(config) if leaf.quantizable]
    rest = [leaf.shape for leaf in decoder.leaves(config) if not leaf.quantizable]
    plain = sum(2 * math.prod(shape) for shape in rest)
    values = sum(math.prod(shape) for shape in quantizable)
    rows = sum(shape[0] for shape in quantizable)
    groups = sum(shape[0] * math.ceil(shape[1] / 128) for shape in quantizable)
    assert weight_bytes(config, "int8") == plain + values + 4 * rows
    assert weight_bytes(config, "fp8") == plain + values + 4 * rows
    assert weight_bytes(config, "int4") == plain + values / 2 + 2 * groups


def brute_pairs(context, new, reach):
    mask = np.tril(np.ones((context, context), bool))
    if reach is not None:
        mask &= ~np.tril(mask, -reach)
    return mask[context - new :]


def test_attention_sees_what_a_mask_says(rng):
    for _ in range(300):
        context = rng.randint(1, 60)
        new, reach = rng.randint(1, context), rng.choice([None, rng.randint(1, 70)])
        mask = brute_pairs(context, new, reach)
        assert work.pairs(context, new, reach) == mask.sum()
        seen = mask.any(axis=0)
        if reach is not None:  # what is new and already out of reach is never kept
            seen[context - new : max(context - reach, context - new)] = False
        assert work.visible(context, new, kv.LayerKV(1, 4, 4, window=reach)) == seen.sum()


def test_flops_are_those_of_every_product(rng):
    for _ in range(10):
        config = random_config(rng)
        context = rng.randint(1, 100)
        new, batch = rng.randint(1, context), rng.randint(1, 5)
        found = roofline.parts(config, batch=batch, context=context, new_tokens=new)
        D, F, H = config.d_model, config.d_ff, config.head_dim
        N, K, L = config.num_heads, config.num_kv_heads, len(config.layers)
        tokens = batch * new
        projections = 2 * tokens * L * D * H * (2 * N + 2 * K)
        assert found["attention projections"].flops == projections
        assert found["mlp"].flops == 2 * tokens * L * D * F * (3 if config.gated else 2)
        assert found["unembedding"].flops == 2 * batch * D * config.vocab_size
        masks = [brute_pairs(context, new, layer.window).sum() for layer in config.layers]
        assert found["attention"].flops == batch * sum(4 * N * H * pairs for pairs in masks)
        assert found["embedding"].flops == 0


def test_a_step_reads_every_weight_but_the_table_of_the_embedding(rng):
    for _ in range(10):
        config = random_config(rng)
        found = roofline.parts(config, batch=3, context=7)
        D, V = config.d_model, config.vocab_size
        norms = sum(
            2 * math.prod(leaf.shape)
            for leaf in jax.tree.leaves(
                decoder.layout(config).replace(
                    layers=tuple(
                        (x.pre_attention, x.post_attention, x.pre_mlp, x.post_mlp)
                        for x in decoder.layout(config).layers
                    ),
                    embed=None,
                    unembed=None,
                    positions=None,
                ),
                is_leaf=decoder.is_leaf,
            )
        )
        unread = 2 * D * (V * (0 if config.tied else 1) + config.learned_positions)
        looked_up = 3 * 2 * D * (2 if config.learned_positions else 1)
        total = sum(part.weight_bytes for part in found.values())
        assert total == weight_bytes(config) - norms - unread + looked_up


def test_a_cache_is_as_large_as_the_ring_that_holds_it(rng):
    for _ in range(20):
        config = random_config(rng)
        length = rng.randint(1, 200)
        chunk = rng.randint(1, length)
        rings, groups = plan_rings(config, length, max_chunk=chunk)
        slots = sum(rings[g].capacity for g in groups)
        wanted = slots * 2 * config.num_kv_heads * config.head_dim * 2
        assert cache_bytes(config, length, chunk=chunk) == wanted


def test_decoding_reads_the_window_only():
    config = presets.find("gemma-3-1b")
    assert config is not None
    per_layer = 2 * config.num_kv_heads * config.head_dim * 2
    full = sum(layer.window is None for layer in config.layers)
    local = len(config.layers) - full
    assert (full, local) == (4, 22)
    found = roofline.parts(config, batch=1, context=4096)["attention"].cache_bytes
    assert found == per_layer * (4 * 4096 + 22 * 512)


def test_caches_that_models_do_not_have():
    config = presets.find("llama-3.1-8b")
    assert config is not None
    own = kv.of(config)

    def read(layers, context=10_000):
        return roofline.parts(config, batch=2, context=context, layers=layers)["attention"]

    def held(layers, shards=1):
        return cache_bytes(config, 10_000, layers=layers, shards=shards)

    plain = 2 * 10_000 * 32 * 8 * 256 * 2
    assert read(own).cache_bytes == plain == 2 * held(own)
    # latent attention of DeepSeek-V2's size: 512 + 64 elements a layer instead of 2048
    latent = kv.latent(config, 512, 64)
    assert read(latent).cache_bytes == plain * 576 / 2048
    assert read(latent).flops == 2 * 2 * 10_000 * 32 * 32 * (576 + 512)
    assert held(latent, 8) == held(latent)  # one vector for all heads: every chip has it whole
    # two layers share a cache: half the memory, read as often
    assert held(kv.shared(own, 2)) == held(own) / 2
    assert read(kv.shared(own, 2)).cache_bytes == plain
    # three of four layers see 1000
    local = kv.local(own, 1000, 4)
    assert read(local).cache_bytes == plain * (10_000 + 3 * 1000) / 40_000
    # sinks and a window
    assert read(kv.stream(own, 1000, 4)).cache_bytes == plain * 1004 / 10_000
    # fewer key-value heads: Llama without grouping would keep 4 times as much
    assert cache_bytes(config.replace(num_kv_heads=32), 10_000) == 4 * held(own)


def test_a_rounded_cache():
    config = presets.find("llama-3.1-8b")
    assert config is not None
    assert cache_bytes(config, 1, "int8") == 32 * 8 * 2 * (128 + 4)
    assert cache_bytes(config, 1, "float32") == 2 * cache_bytes(config, 1)


def test_shards_split_a_cache_until_each_has_one_head():
    config = presets.find("llama-3.1-70b")
    assert config is not None
    one = cache_bytes(config, 100)
    assert [cache_bytes(config, 100, shards=n) / one for n in (2, 8, 16)] == [1 / 2, 1 / 8, 1 / 8]


def test_intensities_of_the_textbook():
    """CS336's lecture: an MLP does about B T FLOPs a byte, attention S T / (S + T): 1 in decode."""
    config = presets.find("llama-2-13b")
    assert config is not None
    for batch in (1, 16, 64):
        mlp = roofline.parts(config, batch=batch, context=1024)["mlp"]
        assert mlp.intensity == pytest.approx(batch, rel=0.05)
        attention = roofline.parts(config, batch=batch, context=1024)["attention"]
        assert attention.intensity == pytest.approx(1, rel=0.01)
    prefill = roofline.parts(config, batch=1, context=4096, new_tokens=4096)["attention"]
    assert prefill.intensity == pytest.approx(4096 / 4, rel=0.01)  # causal: half the pairs


def test_work_adds_up():
    one, two = roofline.Work(1, 2, 3, 4), roofline.Work(10, 20, 30, 40)
    assert one + two == roofline.Work(11, 22, 33, 44)
    assert (one.least_bytes, one.bytes, one.intensity) == (5, 9, 1 / 9)
    assert roofline.Work().intensity == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch >= 1"),
        ({"new_tokens": 9}, "new_tokens <= context"),
        ({"weights": "int3"}, "one of float32"),
        ({"layers": ()}, "a cache a layer"),
        ({"shards": 3}, "tensor parallelism over 3"),
    ],
)
def test_errors(changes, words):
    config = presets.find("llama-3.2-1b")
    assert config is not None
    with pytest.raises(ValueError, match=words):
        roofline.parts(config, **{"batch": 1, "context": 8, **changes})


def test_formats_by_name_or_value():
    wide = dataclasses.replace(formats.find("int4"), group=None)
    assert formats.find(wide) is wide
    assert wide.stored(3, 10) == 3 * (5 + 2)
