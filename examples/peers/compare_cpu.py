"""The comparison on a CPU that the README shows: prefill and decode at two batches, and start-up.

python -m examples.peers.compare_cpu [--model smollm2-360m] [--output FILE], and every other flag of
`examples.peers.compare`
"""

import sys
from collections.abc import Sequence

from examples.peers import compare

DEFAULTS = (
    "--platform=cpu",
    "--model=pico-20m,smollm2-360m",
    "--what=speed,startup",
    "--cases=1x16,1x512,8x16,8x512",
)


def main(argv: Sequence[str] | None = None) -> dict:
    return compare.main([*DEFAULTS, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()
