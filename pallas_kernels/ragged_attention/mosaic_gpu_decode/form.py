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
    pieces merged at a time.
    """

    slots: int = 64
    warpgroups: int = 2
    stages: int = 3
    merged: int = 8
    processors: int = 132

    @property
    def workers(self) -> int:
        return self.processors * self.warpgroups


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
    blocks: Blocks
    interpret: bool

    @property
    def copies(self) -> int:
        """How many parts of pages a block of slots comes in."""
        return max(1, self.blocks.slots // self.page_size) if self.paged else 1

    @property
    def piece(self) -> tuple[int, int]:
        """Rows and columns of a piece, as whole warps load them."""
        return 4 * -(-self.G // 4), 64 if self.H <= 64 else 128 if self.H <= 128 else 256


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
