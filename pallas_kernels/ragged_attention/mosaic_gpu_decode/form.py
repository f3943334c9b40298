"""What the decode kernel knows before it runs, and its smallest parts."""

import dataclasses
import math

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

NEVER = -1e30  # a finite "minus infinity": rows that have seen nothing yet stay finite
LOG2_E = math.log2(math.e)
TILE = 64  # rows of a tensor core tile
WGMMA = plgpu.Layout.WGMMA


@dataclasses.dataclass(frozen=True)
class Blocks:
    """slots a block; warpgroups (each a worker) and multiprocessors; stages of a worker's ring;
    pieces merged at a time; multiprocessors of a cluster that shares a pair (0: workers take ranges
    of the whole batch).
    """

    slots: int = 64
    warpgroups: int = 2
    stages: int = 3
    merged: int = 8
    processors: int = 132
    cluster: int = 0

    @property
    def workers(self) -> int:
        """How many share the batch; in clusters, a pair."""
        return (self.cluster or self.processors) * self.warpgroups


def piece_shape(G: int, H: int) -> tuple[int, int]:
    """Rows and columns of a piece, as whole warps load them."""
    return 4 * -(-G // 4), 64 if H <= 64 else 128 if H <= 128 else 256


@dataclasses.dataclass(frozen=True)
class Form:
    """What the kernel knows before it runs. NB: blocks of slots in a row's ring."""

    B: int
    K: int
    G: int
    H: int
    NB: int
    page_size: int
    capacity: int
    scale: float
    softcap: float | None
    sinks: int
    paged: bool
    far: bool
    new: bool
    narrow: bool
    blocks: Blocks
    interpret: bool

    @property
    def N(self) -> int:
        return self.K * self.G

    @property
    def copies(self) -> int:
        """How many parts of pages a block of slots comes in."""
        return max(1, self.blocks.slots // self.page_size) if self.paged else 1

    @property
    def piece(self) -> tuple[int, int]:
        return piece_shape(self.G, self.H)


def given_of(form: Form, refs):
    """The table, the far queries, the scales of narrow pages (None: not given), and what follows them."""
    refs = iter(refs)
    table = next(refs) if form.paged else None
    far = next(refs) if form.far else None
    scales = (next(refs), next(refs)) if form.narrow else None
    return table, far, scales, tuple(refs)


def worker_of(form: Form):
    wg = lax.axis_index("wg")
    return wg, lax.axis_index("processor") * form.blocks.warpgroups + wg


def wrapped(form: Form, number):
    return jnp.where(number >= form.NB, number - form.NB, number)


def spread(x, shape):
    """A number a row, over the row."""
    return lax.broadcast_in_dim(x, shape, [0])


def or_one(weight):
    return jnp.where(weight == 0.0, jnp.ones_like(weight), weight)
