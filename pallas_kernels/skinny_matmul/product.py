"""One call of the Mosaic GPU kernel as known when it is compiled: its sizes and how they are cut."""

from dataclasses import dataclass

from pallas_kernels.skinny_matmul.registers import BYTES

WIDTH = {"float": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}  # bytes of one weight
PAD = 8  # columns between rows of activations in shared memory: neighbours in different banks
LAST = 264  # blocks that prefetch: about those that run together at the end


def step_of(kind: str, whole: bool) -> int:
    """Columns that one load of a warp covers in a row: 16 bytes of four threads, or of all."""
    return int((32 if whole else 4) * BYTES / WIDTH[kind])


@dataclass(frozen=True)
class Blocks:
    """warps: of a block, 4, 8 or 16. whole: whether a warp takes whole rows. tiles: that a warp owns
    (gated: gate and up rows are a tile each), of 16 rows, or of two whole ones. unroll: loads of a
    row on their way. prefetch: bytes of the next weight, at most.
    """

    warps: int = 8
    tiles: int = 1
    unroll: int = 8
    whole: bool = True
    prefetch: int = 0


@dataclass(frozen=True)
class Wide:
    """The wide form's. groups: warpgroups that multiply in a block, 1, 2 or 4, each 64 rows of weights
    (gated: of each half). stages: of its ring, at most. split: parts of `in`.
    """

    groups: int = 2
    stages: int = 8
    split: int = 1


@dataclass(frozen=True)
class Product:
    """One call, as known when it is compiled."""

    T: int
    out: int
    columns: int
    kind: str
    gate: str | None
    norm_eps: float
    blocks: Blocks
    dtypes: dict
    ahead_bytes: int

    @property
    def tiles(self) -> int:
        return 2 if self.gate else self.blocks.tiles

    @property
    def rows(self) -> int:
        """Of the output, that a block owns."""
        own = 1 if self.gate else self.tiles
        return 2 * own * self.blocks.warps if self.blocks.whole else 16 * own

    @property
    def grid(self) -> int:
        return -(-self.out // self.rows)

    @property
    def eights(self) -> int:
        """Of rows of activations."""
        return -(-self.T // 8)

    @property
    def partials(self) -> int:
        """Floats in shared memory for what the warps tell each other."""
        shares = self.blocks.warps * self.T  # sums of squares
        return (
            shares
            if self.blocks.whole
            else shares + self.blocks.warps * self.eights * 128 * self.tiles
        )

    @property
    def batches(self) -> int:
        return self.columns // step_of(self.kind, self.blocks.whole) // self.blocks.unroll

    @property
    def threads(self) -> int:
        return 32 * self.blocks.warps
