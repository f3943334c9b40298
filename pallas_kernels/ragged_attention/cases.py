"""Real shapes of decode attention, shared by the tests and the benchmark."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """One new token for each of `lengths` (positions, the new one included) over a bfloat16 cache of
    rings of `capacity` slots. page_size None: each row owns one page.
    """

    name: str
    lengths: tuple[int, ...]
    capacity: int
    N: int = 32
    K: int = 8
    H: int = 128
    page_size: int | None = None
    window: int | None = None
    sinks: int = 0
    softcap: float | None = None

    @property
    def rules(self) -> dict:
        """The keyword arguments of `ragged_attention` that the case fixes."""
        return dict(
            capacity=self.capacity, scale=self.H**-0.5, window=self.window, sinks=self.sinks,
            softcap=self.softcap, max_count=1, span=min(max(self.lengths), self.capacity), packed=False,
        )  # fmt: skip

    @property
    def bytes_read(self) -> int:
        """Keys and values that the queries see."""
        most = (
            self.capacity if self.window is None else min(self.capacity, self.window + self.sinks)
        )
        return 2 * 2 * self.K * self.H * sum(min(length, most) for length in self.lengths)

    def table(self, rng: np.random.Generator) -> np.ndarray | None:
        """A shuffled page table [B, pages a row]; rows own no more pages than they have filled (what
        lies beyond names page 0).
        """
        if self.page_size is None:
            return None
        pages = -(-self.capacity // self.page_size)
        filled = [-(-min(n, self.capacity) // self.page_size) for n in self.lengths]
        names = rng.permutation(sum(filled)).astype(np.int32)
        table = np.zeros((len(filled), pages), np.int32)
        for row, end in enumerate(np.cumsum(filled)):
            table[row, : filled[row]] = names[end - filled[row] : end]
        return table

    def pages_shape(self, table: np.ndarray | None) -> tuple[int, int, int, int]:
        """[P, K, page_size, H]."""
        if table is None or self.page_size is None:
            return (len(self.lengths), self.K, self.capacity, self.H)
        return (int(table.max()) + 1, self.K, self.page_size, self.H)


def places(case: Case) -> tuple[jax.Array, jax.Array, jax.Array]:
    """starts, counts, lengths [B] int32."""
    B = len(case.lengths)
    lengths = jnp.asarray(case.lengths, jnp.int32)
    return jnp.arange(B, dtype=jnp.int32), jnp.ones((B,), jnp.int32), lengths


SKEWED = (32768,) + 63 * (512,)

# Llama-3-8B and -70B (one of 8 shards), Llama-3.2-1B, Gemma-2-9B, gpt-oss-like windows, phi-2's heads
DECODE = (
    Case("8b, 64 x 4096", 64 * (4096,), 4096),
    Case("8b, skewed (32768 and 63 x 512)", SKEWED, 32768, page_size=64),
    Case("8b, 1 x 8192", (8192,), 8192),
    Case("8b, 64 x 1024", 64 * (1024,), 1024),
    Case("8b, 1 x 1024", (1024,), 1024),
    Case("8b, 1 x 131072", (131072,), 131072),
    Case("8b, 256 x 1024, pages of 16", 256 * (1024,), 1024, page_size=16),
    Case("8b, 1 x 512", (512,), 512),
    Case("1b, 1 x 512", (512,), 512, H=64),
    Case("1b, 1 x 1024", (1024,), 1024, H=64),
    Case("1b, 1 x 8192", (8192,), 8192, H=64),
    Case("1b, 64 x 1024", 64 * (1024,), 1024, H=64),
    Case("70b shard, 64 x 4096", 64 * (4096,), 4096, N=8, K=1),
    Case("9b gemma, 32 x 4096, window", 32 * (9000,), 4608, N=16, K=8, H=256, window=4096, softcap=50.0),
    Case("stream with sinks, 16 x 2048", 16 * (100_000,), 2048, window=2000, sinks=4, page_size=64),
    Case("2.7b, 32 heads of 80, 16 x 2048", 16 * (2048,), 2048, N=32, K=32, H=80),
)  # fmt: skip
