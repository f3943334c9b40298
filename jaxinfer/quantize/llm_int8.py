"""LLM.int8() (Dettmers et al. 2022, section 3.2): the few columns of a weight that meet outliers among
the activations stay in bfloat16, the rest is int8 times int8.

The paper looks for outliers in each batch. Here the columns are chosen once, so that shapes stand
still and a request's tokens do not depend on its neighbours: those whose activations reach
THRESHOLD on calibration text (section 3.2, alpha = 6), or without such text the columns of the
largest norm.
"""

import numpy as np

from jaxinfer.quantize.grid import check_finite
from jaxinfer.quantize.rtn import round_rows

THRESHOLD = 6.0
LEAST = 8


def count(columns: int) -> int:
    """How many columns are kept where only the weights are known: one in 128, at least LEAST."""
    return min(columns, max(LEAST, columns // 128))


def columns_from_weights(energy: np.ndarray) -> np.ndarray:
    """energy [in]: the sum of squares of each column -> the `count` largest, ascending, int32."""
    order = np.argsort(-energy, kind="stable")[: count(len(energy))]
    return np.sort(order).astype(np.int32)


def columns_from_activations(top: np.ndarray) -> np.ndarray:
    """top [in]: max|x| of each column on calibration text -> those from THRESHOLD on, ascending,
    int32; at least one, at most an eighth.
    """
    found = int(np.clip((top >= THRESHOLD).sum(), 1, max(1, len(top) // 8)))
    return np.sort(np.argsort(-top, kind="stable")[:found]).astype(np.int32)


def split(w: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w [out, in] float32 -> (values int8 with zeros in `columns`, scale [out], outliers [out, C])."""
    check_finite(w, "int8")
    rest = np.array(w, np.float32)
    rest[:, columns] = 0
    return *round_rows(rest), np.asarray(w, np.float32)[:, columns]
