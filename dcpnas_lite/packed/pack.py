"""Signs as bits: packing, the product by XNOR and bit count, thresholds in place of BatchNorm. NumPy only, written to be read.

    Σ_k a_k b_k = 2 popcount(XNOR(u, v)) − n = n − 2 popcount(XOR(u, v))        a, b in {−1, +1}ⁿ with the bits u, v

The second form needs no mask where n is no multiple of 64: bits that fill up a word are 0 in both words, and XOR says 0 there.
Images have their channels last, (N, H, W, C), so that the bits of a pixel are neighbours. `fast` has the same products in numba.
"""

from __future__ import annotations

import numpy as np

# -- words ------------------------------------------------------------------------------------------------------------


def pack(bits: np.ndarray) -> np.ndarray:
    """Truth values (…, n) → 64-bit words (…, ⌈n/64⌉); bit k of a word is element k, and bits that are left over are 0."""
    octets = np.packbits(bits, axis=-1, bitorder="little")
    words = np.zeros((*octets.shape[:-1], -(-octets.shape[-1] // 8) * 8), np.uint8)
    words[..., : octets.shape[-1]] = octets
    return words.view("<u8")


def unpack(words: np.ndarray, n: int) -> np.ndarray:
    """The first n bits of words (…, V) → truth values (…, n)."""
    return np.unpackbits(words.view(np.uint8), axis=-1, count=n, bitorder="little").view(bool)


def border(words: np.ndarray, padding: int, value: int, n: int) -> np.ndarray:
    """Words (N, H, W, …, V) of n bits with `padding` pixels of the sign `value`, −1 or +1, on every side."""
    if not padding:
        return words
    count, height, width, *rest = words.shape
    out = np.zeros((count, height + 2 * padding, width + 2 * padding, *rest), "<u8")
    if value > 0:
        out[:] = pack(np.ones(n, bool))
    out[:, padding:-padding, padding:-padding] = words
    return out


# -- products ---------------------------------------------------------------------------------------------------------


def taps(x: np.ndarray, kernel: int, stride: int, dilation: int):
    """For every position (i, j) of a kernel the pixels of x (N, H, W, …) that it meets, (N, H', W', …)."""
    height, width = ((size - dilation * (kernel - 1) - 1) // stride + 1 for size in x.shape[1:3])
    for i in range(kernel):
        for j in range(kernel):
            y, x0 = i * dilation, j * dilation
            yield i, j, x[:, y : y + stride * (height - 1) + 1 : stride, x0 : x0 + stride * (width - 1) + 1 : stride]


def product(words: np.ndarray, weights: np.ndarray, n: int, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """The integers of a 1-bit convolution, sign(a) ⊙ sign(w) of (4.22), by XOR and bit count.

    words (N, H, W, G, V): the n bits of a pixel in each of G groups of channels, border included. weights (O, k, k, V): the same
    of O filters, group by group. Returns int32 (N, H', W', O).
    """
    filters, kernel, _, width = weights.shape
    groups = words.shape[3]
    differ = np.zeros((), np.int32)
    for i, j, pixels in taps(words, kernel, stride, dilation):
        for v in range(width):  # (N, H', W', G, 1) against (G, O/G)
            weight = weights[:, i, j, v].reshape(groups, filters // groups)
            differ = differ + np.bitwise_count(pixels[..., v, None] ^ weight).astype(np.int32)
    return kernel**2 * n - 2 * differ.reshape(*differ.shape[:3], filters)


def depthwise(words: np.ndarray, weights: np.ndarray, channels: int, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """The same where every channel has one filter of its own: words (N, H, W, V), weights (k, k, V) → int32 (N, H', W', C).

    A word holds 64 channels of one pixel, and so of one tap: the count runs over the taps, for all channels side by side.
    """
    kernel = len(weights)
    differ = np.zeros((), np.int32)
    for i, j, pixels in taps(words, kernel, stride, dilation):
        differ = differ + unpack(pixels ^ weights[i, j], channels).astype(np.int32)
    return kernel**2 - 2 * differ


# -- thresholds -------------------------------------------------------------------------------------------------------


def affine(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """scale · x + shift for each channel of x (…, C), rounded to float32 once, as a fused multiply-add does."""
    return (x * scale.astype(np.float64) + shift).astype(np.float32)


def threshold(scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(t, flip) of every channel with  scale · x + shift ≥ 0  ⟺  (x ≥ t) ≠ flip  for all float32 x, without rounding.

    t is the first float32 number on the other side of −shift/scale: the rounded quotient, or where that is too low its neighbour.
    Which, is seen exactly: a product of two float32 numbers is exact in float64, and a sum keeps its sign when it is rounded.
    """
    scale, shift = scale.astype(np.float64), shift.astype(np.float64)
    flip, up = scale < 0, np.float32(np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t = (-shift / scale).astype(np.float32)
        beyond = (scale * t + shift >= 0) != flip
        t = np.where(beyond, t, np.nextafter(t, up))
    constant = scale == 0
    return np.where(constant, -up, t), np.where(constant, shift < 0, flip)


def scaled(count: np.ndarray, beta: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """PReLU(β · count) in float32, as `BinaryConv2d` and `PReLU` round it: (…, C) → (…, C)."""
    x = count.astype(np.float32) * beta
    return np.where(x > 0, x, slope * x)


def interval(
    n: int, beta: np.ndarray, slope: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, high, flip) of every channel with  scale · PReLU(β s) + shift ≥ 0  ⟺  (low ≤ s ≤ high) ≠ flip,  s of n signs.

    A PReLU rises, or with a negative slope is a V: the counts where a line over it is positive are an interval, or all others.
    Tried on each of the n + 1 counts, with the rounding of the network.
    """
    count = np.arange(-n, n + 1, 2)
    positive = scale.astype(np.float64) * scaled(count[:, None], beta, slope) + shift >= 0  # (n + 1, C)
    flip = positive[0] & positive[-1] & ~positive.all(0)
    inside = positive != flip
    low, high = count[inside.argmax(0)], count[n - inside[::-1].argmax(0)]
    empty = ~inside.any(0)
    low, high = np.where(empty, n + 1, low), np.where(empty, -n - 1, high)
    assert (inside == ((low <= count[:, None]) & (count[:, None] <= high))).all()
    return low, high, flip
