"""Rotary frequencies and attention factors equal transformers', for every scaling."""

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxinfer.config import Rope
from jaxinfer.models import hf_config, rope

MAX_POSITION = 128


def random_parameters(kind: str, half: int, rng) -> dict:
    factor = float(rng.uniform(1.5, 16))
    original = int(rng.integers(20, 100))
    return {
        "default": {},
        "linear": {"factor": factor},
        "dynamic": {"factor": factor},
        "llama3": {
            "factor": factor,
            "low_freq_factor": float(rng.uniform(0.5, 2)),
            "high_freq_factor": float(rng.uniform(3, 8)),
            "original_max_position_embeddings": original,
        },
        "yarn": {"factor": factor, "original_max_position_embeddings": original},
        "yarn-given": {
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": float(rng.uniform(0.5, 2)),
            "beta_fast": float(rng.uniform(10, 40)),
            "beta_slow": float(rng.uniform(0.5, 3)),
            "truncate": False,
        },
        "yarn-mscale": {
            "factor": factor,
            "original_max_position_embeddings": original,
            "mscale": float(rng.uniform(0.5, 2)),
            "mscale_all_dim": float(rng.uniform(0.5, 2)),
        },
        "yarn-one-mscale": {
            "factor": factor,
            "original_max_position_embeddings": original,
            "mscale": 0.707,
        },
        "longrope": {
            "short_factor": rng.uniform(1, 2, half).tolist(),
            "long_factor": rng.uniform(2, 40, half).tolist(),
            "original_max_position_embeddings": original,
        },
        "longrope-given": {
            "short_factor": rng.uniform(1, 2, half).tolist(),
            "long_factor": rng.uniform(2, 40, half).tolist(),
            "original_max_position_embeddings": original,
            "factor": factor,
            "attention_factor": float(rng.uniform(0.5, 2)),
        },
    }[kind]


KINDS = [
    "default",
    "linear",
    "dynamic",
    "llama3",
    "yarn",
    "yarn-given",
    "yarn-mscale",
    "yarn-one-mscale",
]
KINDS += ["longrope", "longrope-given"]


@pytest.mark.parametrize("fraction", [1.0, 0.75])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind, fraction):
    seed = int(np.random.default_rng().integers(2**31))
    rng = np.random.default_rng(seed)
    head_dim = 8 * int(rng.integers(2, 9))
    half = int(head_dim * fraction) // 2
    parameters = {
        "rope_type": kind.split("-")[0],
        "rope_theta": float(rng.uniform(500, 50000)),
        "partial_rotary_factor": fraction,
        **random_parameters(kind, half, rng),
    }
    theirs = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITION,
        rope_parameters=dict(parameters),
    )
    ours = hf_config.rope(
        {"max_position_embeddings": MAX_POSITION, "rope_parameters": parameters},
        head_dim,
        partial=True,
    )
    lengths = np.array(
        [10, MAX_POSITION // 2, MAX_POSITION, MAX_POSITION + 1, 5 * MAX_POSITION], np.int32
    )
    found = np.broadcast_to(np.asarray(rope.frequencies(ours, lengths)), (len(lengths), half))
    for length, row in zip(lengths.tolist(), found, strict=True):
        if kind == "default":
            wanted, factor = (
                theirs.rope_parameters["rope_theta"] ** -(torch.arange(half) / half),
                1.0,
            )
        else:
            wanted, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](
                theirs, "cpu", seq_len=length
            )
        np.testing.assert_allclose(
            row, wanted.numpy(), rtol=2e-5, err_msg=f"{kind} {seed=} {length=}"
        )
        assert ours.attention_factor == pytest.approx(factor, rel=1e-6), f"{kind} {seed=}"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "default"])
def test_older_layout(kind):
    """rope_theta beside rope_scaling, whose kind is called "type" or "rope_type", reads the same."""
    rng = np.random.default_rng()
    parameters = random_parameters(kind, 16, rng)
    scaling, base = kind.split("-")[0], {"max_position_embeddings": MAX_POSITION}
    new = {**base, "rope_parameters": {"rope_type": scaling, "rope_theta": 777.0, **parameters}}
    wanted = hf_config.rope(new, 32)
    for key in ("type", "rope_type"):
        old = {**base, "rope_theta": 777.0, "rope_scaling": {key: scaling, **parameters}}
        assert hf_config.rope(old, 32) == wanted
    # a length of pre-training beside rope_scaling is the one that counts
    if wanted.original_max_position:
        moved = {k: v for k, v in parameters.items() if k != "original_max_position_embeddings"}
        old = {**base, "rope_theta": 777.0, "rope_scaling": {"type": scaling, **moved}}
        if scaling != "dynamic":
            old["original_max_position_embeddings"] = wanted.original_max_position
        assert hf_config.rope(old, 32) == wanted


def test_rotation_is_transformers():
    """The angles and the pairing of dimensions, part of the head left alone."""
    rng = np.random.default_rng()
    T, N, H = 7, 3, 20
    x = rng.standard_normal((T, N, H)).astype(np.float32)
    positions = rng.integers(0, 1000, T).astype(np.int32)
    ours = Rope(theta=5000.0, rotary_dim=12, attention_factor=1.3)
    config = transformers.Phi3Config(
        hidden_size=N * H,
        num_attention_heads=N,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.6,
        },
    )
    module = transformers.models.phi3.modeling_phi3
    embedding = module.Phi3RotaryEmbedding(config)
    cos, sin = embedding(torch.zeros(1), torch.tensor(positions[None]))
    q = torch.tensor(x.transpose(1, 0, 2)[None])
    wanted = (
        module.apply_rotary_pos_emb(q, q, cos * 1.3, sin * 1.3)[0][0].numpy().transpose(1, 0, 2)
    )
    found = rope.rotate(x, *rope.table(ours, positions, positions))
    np.testing.assert_allclose(found, wanted, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_type": "proportional"}, "rope_type"),
        ({"rope_type": 3}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": "yes"}, "truncate"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 16}, "long_factor"),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 15, "long_factor": [1.0] * 16},
            "16 short and long",
        ),
        (
            {"rope_type": "longrope", "short_factor": ["a"] * 16, "long_factor": [1.0] * 16},
            "short_factor",
        ),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"full_attention": {"rope_theta": 1.0}}, "by layer type"),
    ],
)
def test_refused(change, message):
    hf = {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 10000.0, **change}}
    with pytest.raises(ValueError, match=message):
        hf_config.rope(hf, 32)
