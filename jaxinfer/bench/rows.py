"""What every row of a result says about a time: rates, floors and fractions of the ceilings."""

from jaxinfer.bench.ceilings import Ceilings
from jaxinfer.bench.timing import Timing
from jaxinfer.roofline import Bound


def against_floor(timing: Timing, bound: Bound, ceilings: Ceilings, what: str) -> dict:
    """`what`_ms and its spread, tokens per second, bytes and FLOPs per second, and fractions.

    bytes: what no program avoids (weights and cache), so that of_read_ceiling is the part of the
    machine's reading speed that did useful work. of_matmul_ceiling: the same of its FLOP/s (MFU).
    floor_ms: the roofline's, of the measured ceilings; of_floor: the part of the time that it is.
    """
    work, seconds = bound.work, timing.median
    return {
        f"{what}_ms": seconds * 1e3,
        "spread": timing.spread,
        "repeats": len(timing.seconds),
        "tokens_per_s": bound.tokens / seconds,
        "bytes": work.least_bytes,
        "bytes_per_s": work.least_bytes / seconds,
        "flops": work.flops,
        "flop_per_s": work.flops / seconds,
        "intensity": work.flops / work.least_bytes,
        "of_read_ceiling": bound.memory_s / seconds,
        "of_matmul_ceiling": bound.compute_s / seconds,
        "floor_ms": bound.latency_s * 1e3,
        "of_floor": bound.latency_s / seconds,
        "limited_by": bound.limited_by,
    }
