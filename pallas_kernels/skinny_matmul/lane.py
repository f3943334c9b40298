"""One thread of the Mosaic GPU kernel: where it stands and how it reaches memory."""

from jax.experimental.mosaic.gpu import utils as mgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, memref

from pallas_kernels.skinny_matmul import registers as r
from pallas_kernels.skinny_matmul.product import Product


class Lane:
    """Lane 4 g + t of a warp of a block; `refs` are the kernel's buffers by name."""

    def __init__(self, product: Product, refs: dict):
        self.product, self.refs = product, refs
        index = arith.index_cast(r.i32(), gpu.thread_id(gpu.Dimension.x))
        self.block = arith.index_cast(r.i32(), gpu.block_id(gpu.Dimension.x))
        self.index = index
        self.lane = arith.andi(index, r.word(31))
        self.warp = arith.shrui(index, r.word(5))
        self.g = arith.shrui(self.lane, r.word(2))
        self.t = arith.andi(self.lane, r.word(3))
        self.row0 = arith.muli(self.block, r.word(product.rows))

    def base(self, name: str) -> ir.Value:
        """The address of a buffer, 32 bits for shared memory."""
        local = name in ("activations", "partial")
        return llvm.ptrtoint(r.i32() if local else r.i64(), mgpu.memref_ptr(self.refs[name]))

    def read(self, name: str, *indices: ir.Value) -> ir.Value:
        """One element of a buffer, in float32."""
        value = memref.load(self.refs[name], [self.place_of(i) for i in indices])
        wide = ir.F32Type.get()
        return value if value.type == wide else arith.extf(wide, value)

    def place_of(self, value: ir.Value) -> ir.Value:
        return arith.index_cast(ir.IndexType.get(), value)
