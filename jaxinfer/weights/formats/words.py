"""Small integers in the bytes of little-endian words."""

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds neighbour AWQ_ORDER[i]


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 [..., n] -> uint8 [..., n * 32 / bits]: 4 or 8 bits each, the lowest first."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets
    out = np.empty((*octets.shape[:-1], 2 * octets.shape[-1]), np.uint8)
    np.bitwise_and(octets, 15, out=out[..., 0::2])
    np.right_shift(octets, 4, out=out[..., 1::2])
    return out


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., n * 32 / bits] -> int32 [..., n], the inverse of `unpack`."""
    octets = np.ascontiguousarray(values, np.uint8)
    if bits == 4:
        octets = octets[..., 0::2] | (octets[..., 1::2] << 4)
    return np.ascontiguousarray(octets).view(np.int32)


def from_awq(nibbles: np.ndarray) -> np.ndarray:
    """Nibbles [..., n] in the order of AWQ's words -> as neighbours."""
    eights = nibbles.reshape(*nibbles.shape[:-1], -1, 8)
    out = np.empty_like(eights)
    out[..., AWQ_ORDER] = eights
    return out.reshape(nibbles.shape)


def to_awq(nibbles: np.ndarray) -> np.ndarray:
    """The inverse of `from_awq`."""
    eights = nibbles.reshape(*nibbles.shape[:-1], -1, 8)
    return eights[..., AWQ_ORDER].reshape(nibbles.shape)
