"""Prefill, decode, generate and score as pure functions for JAX programs.

Everything here may be called inside a caller's own `jit`; `config` and the keyword-only integers
are static. `logits` and `score` keep no cache and are differentiable. Arrays: tokens [B, T] int32
with row b's text in its first lengths[b] places; what lies past a length is never looked at.
"""

from jaxinfer.generate.decoding import Generated as Generated
from jaxinfer.generate.decoding import cache_dtype as cache_dtype
from jaxinfer.generate.decoding import decode as decode
from jaxinfer.generate.decoding import generate as generate
from jaxinfer.generate.decoding import new_cache as new_cache
from jaxinfer.generate.decoding import prefill as prefill
from jaxinfer.generate.scoring import POOLINGS as POOLINGS
from jaxinfer.generate.scoring import SCORE_BLOCK as SCORE_BLOCK
from jaxinfer.generate.scoring import Alternatives as Alternatives
from jaxinfer.generate.scoring import embed as embed
from jaxinfer.generate.scoring import hidden_states as hidden_states
from jaxinfer.generate.scoring import logits as logits
from jaxinfer.generate.scoring import score as score
from jaxinfer.generate.scoring import score_alternatives as score_alternatives
