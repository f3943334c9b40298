"""What is right: the logits of a whole sequence, written out in numpy float64. No cache, no jit, no
batch.

It shares with the library the parameters' canonical names and rotary frequencies, and nothing else.
"""

import numpy as np
from scipy.special import erf

from jaxinfer.models import decoder, rope

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def logits(params, config, token_ids, *, stream=None, reach=None, kept=None) -> np.ndarray:
    """[T, V] of one sequence.

    stream: (sinks, window) of a stream without end. reach: as in `Ragged`, default T. kept: what a
    cache makes of keys and of values, [T, heads, H] each.
    """
    return _logits(_tensors(params, config), config, token_ids, stream, reach, kept)


def greedy(params, config, prompt, n, *, stream=None, reach=None) -> list[int]:
    """The n tokens that follow `prompt`, each the most likely one."""
    w, ids = _tensors(params, config), list(prompt)
    for _ in range(n):
        ids.append(int(_logits(w, config, ids, stream, reach)[-1].argmax()))
    return ids[len(prompt) :]


def _tensors(params, config):
    return {
        name: np.asarray(x, np.float64) for name, x in decoder.canonical(config, params).items()
    }


def _logits(w, config, token_ids, stream, reach, kept=None):
    x = w["embed"][np.asarray(token_ids)] * config.embed_scale
    if config.learned_positions:
        x = x + w["positions"][: len(x)]
    for i, layer in enumerate(config.layers):
        name = f"layers.{i}"
        y = _attention(
            _norm(x, w, f"{name}.pre_attention", config),
            w,
            name,
            config,
            layer,
            stream,
            reach or len(x),
            kept,
        )
        x = x + config.residual_scale * _norm(y, w, f"{name}.post_attention", config)
        y = _mlp(_norm(x, w, f"{name}.pre_mlp", config), w, f"{name}.mlp", config)
        x = x + config.residual_scale * _norm(y, w, f"{name}.post_mlp", config)
    out = (
        _norm(x, w, "norm", config)
        @ w["embed" if config.tied else "unembed"].T
        * config.logits_scale
    )
    return _softcap(out, config.final_softcap)


def _attention(x, w, name, config, layer, stream, reach, kept):
    T, N, K, H = len(x), config.num_heads, config.num_kv_heads, config.head_dim
    position = np.arange(T)

    def heads(part, count):
        y = _linear(x, w, f"{name}.attention.{part}")
        y = y.reshape(T, 1, count * H) if config.qk_norm == "full" else y.reshape(T, count, H)
        return _norm(y, w, f"{name}.attention.{part}_norm", config).reshape(T, count, H)

    q, k, v = (
        heads("q", N),
        heads("k", K).repeat(N // K, axis=1),
        heads("v", K).repeat(N // K, axis=1),
    )
    sinks, window = 0, layer.window or T
    if stream is not None and (layer.window is None or layer.window > stream[1]):
        sinks, window = stream
    k = _rotate(k, position, layer.rope, reach)
    k, v = (k, v) if kept is None else (kept(k), kept(v))
    scores = np.einsum("tnh,snh->nts", _rotate(q, position, layer.rope, reach), k)
    if sinks:  # a sink is as far away as it lies inside a buffer of sinks + window (StreamingLLM)
        inside = np.minimum(position, sinks + window - 1)
        scores[:, :, :sinks] = np.einsum(
            "tnh,snh->nts", _rotate(q, inside, layer.rope, reach), k[:sinks]
        )
    scores = _softcap(scores * config.scale, config.attention_softcap)
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & ((distance < window) | (position[None, :] < sinks))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return _linear(
        np.einsum("nts,snh->tnh", weights, v).reshape(T, N * H), w, f"{name}.attention.out"
    )


def _rotate(x, position, rotary, reach):
    if rotary is None:
        return x
    frequencies = np.asarray(rope.frequencies(rotary, np.full(1, reach, np.int32)), np.float64)
    turn = rotary.attention_factor * np.exp(1j * position[:, None] * frequencies)
    half = turn.shape[1]
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * turn[:, None]
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], axis=-1)


def _mlp(x, w, name, config):
    y = ACTIVATIONS[config.activation](
        _linear(x, w, f"{name}.gate" if config.gated else f"{name}.up")
    )
    return _linear(y * _linear(x, w, f"{name}.up") if config.gated else y, w, f"{name}.down")


def _linear(x, w, name):
    return x @ w[f"{name}.w"].T + w.get(f"{name}.b", 0.0)


def _norm(x, w, name, config):
    if f"{name}.scale" not in w:
        return x
    x = x - x.mean(axis=-1, keepdims=True) if config.norm == "layer" else x
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.norm_eps)
    return x * (w[f"{name}.scale"] + config.norm_offset) + w.get(f"{name}.bias", 0.0)


def _softcap(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)
