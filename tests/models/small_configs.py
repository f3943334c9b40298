"""Small models of every family, as the config.json that transformers 5 writes: odd sizes, every
rope scaling.
"""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
DEEP_YARN = {
    **YARN,
    "mscale": 1.2,
    "mscale_all_dim": 0.7,
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "truncate": False,
}


def longrope(half: int, original: int) -> dict:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0 + 0.05 * i for i in range(half)],
        "long_factor": [1.5 + 0.5 * i for i in range(half)],
        "original_max_position_embeddings": original,
    }


def plain(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


def _llama(**changes) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 203,
        "hidden_size": 84,
        "intermediate_size": 152,
        "num_hidden_layers": 2,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": plain(10000.0),
        **changes,
    }


def _phi3(original: int, **changes) -> dict:
    return _llama(
        architectures=["Phi3ForCausalLM"],
        model_type="phi3",
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=original,
        rope_parameters=longrope(12, original),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **changes,
    )


SMALL = {
    "llama3": _llama(rope_parameters=LLAMA3),
    "llama-linear": _llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
        hidden_size=96,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=12,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "llama-dynamic": _llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0},
        max_position_embeddings=86,
    ),
    "mistral": _llama(
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        num_attention_heads=4,
        head_dim=64,
        sliding_window=9,
        rope_parameters=DEEP_YARN,
    ),
    "qwen2": _llama(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        hidden_size=80,
        num_hidden_layers=3,
        rope_parameters=YARN,
        use_sliding_window=True,
        sliding_window=11,
        max_window_layers=1,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    "qwen3": _llama(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        hidden_size=72,
        num_attention_heads=4,
        head_dim=128,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "gemma": _llama(
        architectures=["GemmaForCausalLM"],
        model_type="gemma",
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        pad_token_id=0,
    ),
    "gemma2": _llama(
        architectures=["Gemma2ForCausalLM"],
        model_type="gemma2",
        num_hidden_layers=3,
        num_attention_heads=4,
        head_dim=48,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=40,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        attn_logit_softcapping=20.0,
        final_logit_softcapping=15.0,
        tie_word_embeddings=True,
        pad_token_id=0,
    ),
    "gemma3": _llama(
        architectures=["Gemma3ForCausalLM"],
        model_type="gemma3_text",
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=64,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=50,
        sliding_window=6,
        layer_types=[
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
            "sliding_attention": plain(1000.0),
        },
        tie_word_embeddings=True,
        pad_token_id=0,
    ),
    "phi3-long": _phi3(16, num_key_value_heads=2, head_dim=32),
    "phi3-short": _phi3(
        128, num_key_value_heads=4, head_dim=32, sliding_window=10, tie_word_embeddings=True
    ),
    "olmo2": _llama(
        architectures=["Olmo2ForCausalLM"],
        model_type="olmo2",
        num_attention_heads=4,
        head_dim=40,
        attention_bias=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "smollm3": _llama(
        architectures=["SmolLM3ForCausalLM"],
        model_type="smollm3",
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=32,
        no_rope_layers=[1, 0, 1, 0],
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=13,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "granite": _llama(
        architectures=["GraniteForCausalLM"],
        model_type="granite",
        num_attention_heads=4,
        head_dim=36,
        attention_bias=True,
        mlp_bias=True,
        embedding_multiplier=3.0,
        logits_scaling=5.0,
        residual_multiplier=0.3,
        attention_multiplier=0.11,
    ),
    "starcoder2": {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "vocab_size": 203,
        "hidden_size": 96,
        "intermediate_size": 152,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 512,
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "sliding_window": 12,
        "tie_word_embeddings": True,
        "rope_parameters": plain(10000.0),
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 203,
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": None,
        "n_positions": 128,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
