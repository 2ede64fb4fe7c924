"""The functions of `pack`, compiled by numba: the same integers and bits. `available` says whether numba is installed.

A product goes through the taps of a pixel four at a time and through the filters innermost, so that one word of the image meets
as many filters as the processor has lanes. Rows are shared out to threads; a layer with little to do stays on one.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .pack import pack

try:
    from numba import njit, types
    from numba.extending import intrinsic
except ImportError:
    available = False
else:
    available = True

THREADED = 1 << 21  # operations on words from which on a second thread pays for being woken
PLANES = 5  # of the counters in `depthwise`: they reach 31 taps


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def by_rows(kernel, threads: int, operations: int, rows: int, *arguments) -> None:
    """kernel(first, last, *arguments) for all rows of a layer, shared out to `threads`."""
    if threads == 1 or operations < THREADED:
        kernel(0, rows, *arguments)
        return
    cuts = [rows * k // threads for k in range(threads + 1)]
    list(_workers(threads).map(lambda first, last: kernel(first, last, *arguments), cuts[:-1], cuts[1:]))


if available:

    @intrinsic
    def popcount(context, word):
        return types.uint64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])

    @njit(nogil=True, cache=True)
    def _binarize(first, last, x, threshold, flip, out):
        channels = x.shape[1]
        for p in range(first, last):
            for v in range(out.shape[1]):
                word = np.uint64(0)
                for c in range(min(64, channels - 64 * v)):
                    bit = (x[p, 64 * v + c] >= threshold[64 * v + c]) ^ flip[64 * v + c]
                    word |= np.uint64(bit) << np.uint64(c)
                out[p, v] = word

    @njit(nogil=True, cache=True)
    def _counts(words, weights, n, kernel, stride, dilation, image, y, count):
        """The products of one row of an image into `count` (W, O)."""
        groups, taps, per_group = weights.shape
        patch, differ = np.empty(taps, np.uint64), np.empty(per_group, np.uint64)
        for group in range(groups):
            w = weights[group]
            for x in range(len(count)):
                t = 0
                for i in range(kernel):
                    for j in range(kernel):
                        for v in range(words.shape[4]):
                            patch[t] = words[image, y * stride + i * dilation, x * stride + j * dilation, group, v]
                            t += 1
                differ[:] = 0
                for t in range(taps % 4):
                    for o in range(per_group):
                        differ[o] += popcount(patch[t] ^ w[t, o])
                for t in range(taps % 4, taps, 4):
                    a, b, c, d = patch[t], patch[t + 1], patch[t + 2], patch[t + 3]
                    for o in range(per_group):
                        differ[o] += (
                            popcount(a ^ w[t, o]) + popcount(b ^ w[t + 1, o])
                            + popcount(c ^ w[t + 2, o]) + popcount(d ^ w[t + 3, o])
                        )  # fmt: skip
                for o in range(per_group):
                    count[x, group * per_group + o] = n - 2 * np.int32(differ[o])

    @njit(nogil=True, cache=True)
    def _product(first, last, words, weights, geometry, out):
        height = out.shape[1]
        for row in range(first, last):
            _counts(words, weights, *geometry, row // height, row % height, out[row // height, row % height])

    @njit(nogil=True, cache=True)
    def _product_scaled(first, last, words, weights, geometry, beta, slope, out):
        height, width, filters = out.shape[1:]
        count = np.empty((width, filters), np.int32)
        for row in range(first, last):
            image, y = row // height, row % height
            _counts(words, weights, *geometry, image, y, count)
            for x in range(width):
                for c in range(filters):
                    value = np.float32(count[x, c]) * beta[c]
                    out[image, y, x, c] = value if value > 0 else slope[c] * value

    @njit(nogil=True, cache=True)
    def _product_inside(first, last, words, weights, geometry, low, high, flip, out):
        height, width, filters = out.shape[1], out.shape[2], len(low)
        count = np.empty((width, filters), np.int32)
        for row in range(first, last):
            image, y = row // height, row % height
            _counts(words, weights, *geometry, image, y, count)
            for x in range(width):
                for v in range(out.shape[3]):
                    word = np.uint64(0)
                    for c in range(min(64, filters - 64 * v)):
                        value = count[x, 64 * v + c]
                        bit = ((low[64 * v + c] <= value) & (value <= high[64 * v + c])) ^ flip[64 * v + c]
                        word |= np.uint64(bit) << np.uint64(c)
                    out[image, y, x, v] = word

    @njit(nogil=True, cache=True)
    def _depthwise(first, last, words, weights, stride, dilation, low, high, flip, out):
        kernel, height = weights.shape[0], out.shape[1]
        for row in range(first, last):
            image, y = row // height, row % height
            for v in range(out.shape[3]):
                for x in range(out.shape[2]):
                    c0 = c1 = c2 = c3 = c4 = np.uint64(0)  # bit c of plane k: bit k of the count of channel c
                    for i in range(kernel):
                        for j in range(kernel):
                            carry = ~(words[image, y * stride + i * dilation, x * stride + j * dilation, v] ^ weights[i, j, v])
                            c0, carry = c0 ^ carry, c0 & carry
                            c1, carry = c1 ^ carry, c1 & carry
                            c2, carry = c2 ^ carry, c2 & carry
                            c3, carry = c3 ^ carry, c3 & carry
                            c4 ^= carry
                    below = above = np.uint64(0)  # from the lowest plane up: a higher one overrules
                    for k, plane in enumerate((c0, c1, c2, c3, c4)):
                        below = (~plane & low[k, v]) | (~(plane ^ low[k, v]) & below)
                        above = (plane & ~high[k, v]) | (~(plane ^ high[k, v]) & above)
                    out[image, y, x, v] = ~(below | above) ^ flip[v]

    @njit(nogil=True, cache=True)
    def _convolution(first, last, x, weights, stride, out):
        kernel, channels, height, filters = weights.shape[0], weights.shape[2], out.shape[1], weights.shape[3]
        total = np.empty(filters, np.float64)
        for row in range(first, last):
            image, y = row // height, row % height
            for column in range(out.shape[2]):
                total[:] = 0
                for i in range(kernel):
                    for j in range(kernel):
                        for c in range(channels):
                            value = np.float64(x[image, y * stride + i, column * stride + j, c])
                            for o in range(filters):
                                total[o] += value * weights[i, j, c, o]
                for o in range(filters):
                    out[image, y, column, o] = total[o]

    @njit(nogil=True, cache=True)
    def _pool(first, last, x, kernel, stride, padding, mean, out):
        height, channels, empty = out.shape[1], x.shape[3], np.float32(0 if mean else -np.inf)
        value = np.empty(channels, np.float32)
        for row in range(first, last):
            image, top = row // height, row % height * stride - padding
            for column in range(out.shape[2]):
                left, count = column * stride - padding, 0
                value[:] = empty
                for i in range(max(top, 0), min(top + kernel, x.shape[1])):
                    for j in range(max(left, 0), min(left + kernel, x.shape[2])):
                        count += 1
                        for c in range(channels):
                            seen = x[image, i, j, c]
                            value[c] = value[c] + seen if mean else max(value[c], seen)
                for c in range(channels):
                    out[image, row % height, column, c] = value[c] / np.float32(count) if mean else value[c]

    @njit(nogil=True, cache=True)
    def _affine(first, last, x, scale, shift, out):
        for p in range(first, last):
            for c in range(x.shape[1]):
                out[p, c] = np.float64(x[p, c]) * scale[c] + shift[c]


def binarize(x: np.ndarray, threshold: np.ndarray, flip: np.ndarray, threads: int = 1) -> np.ndarray:
    """(x ≥ threshold) ≠ flip as words: float32 (N, H, W, C) → (N, H, W, V)."""
    out = np.empty((*x.shape[:3], -(-x.shape[3] // 64)), np.uint64)
    flat, words = (np.ascontiguousarray(a).reshape(-1, a.shape[3]) for a in (x, out))
    by_rows(_binarize, threads, x.size // 4, len(flat), flat, threshold, flip, words)
    return out


class Product:
    """`pack.product` of weights (O, k, k, V) of n signs a tap; by itself, or with what stands behind it before it is stored."""

    def __init__(self, weights: np.ndarray, n: int, groups: int = 1, stride: int = 1, dilation: int = 1, threads: int = 1):
        self.filters, self.kernel = weights.shape[:2]
        by_group = weights.reshape(groups, self.filters // groups, -1)
        self.weights = np.ascontiguousarray(by_group.transpose(0, 2, 1))  # (G, k k V, O/G)
        self.geometry = self.kernel**2 * n, self.kernel, stride, dilation
        self.threads = threads

    def __call__(self, words: np.ndarray) -> np.ndarray:
        """Words (N, H, W, G, V), border included → int32 (N, H', W', O)."""
        return self._run(_product, words, self.filters, np.int32)

    def scaled(self, words: np.ndarray, beta: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """`pack.scaled` of it: float32 (N, H', W', O)."""
        return self._run(_product_scaled, words, self.filters, np.float32, beta, slope)

    def inside(self, words: np.ndarray, low: np.ndarray, high: np.ndarray, flip: np.ndarray) -> np.ndarray:
        """(low ≤ product ≤ high) ≠ flip as words (N, H', W', V)."""
        return self._run(_product_inside, words, -(-self.filters // 64), np.uint64, low, high, flip)

    def _run(self, kernel, words: np.ndarray, last: int, kind: type, *of_filters: np.ndarray) -> np.ndarray:
        _, size, stride, dilation = self.geometry
        out: np.ndarray = np.empty((*_output(words, size, stride, dilation), last), kind)
        work = out[..., 0].size * self.weights.size
        by_rows(kernel, self.threads, work, _rows(out), words, self.weights, self.geometry, *of_filters, out)
        return out


def depthwise(
    words: np.ndarray, weights: np.ndarray, stride: int, dilation: int, bounds: tuple, threads: int = 1
) -> np.ndarray:
    """What of `pack.depthwise` is inside the bounds of `planes`, 64 channels at once: words (N, H, W, V) → (N, H', W', V).

    The counts of 64 channels stand upright: plane k holds bit k of all of them, and a tap is added by a chain of carries.
    """
    kernel = len(weights)
    out = np.empty((*_output(words, kernel, stride, dilation), words.shape[3]), np.uint64)
    by_rows(_depthwise, threads, out.size * kernel**2 * 16, _rows(out), words, weights, stride, dilation, *bounds, out)
    return out


def planes(n: int, low: np.ndarray, high: np.ndarray, flip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds on products of n signs as bounds on how many agree, in planes (5, V), and flip in words (V)."""
    agree = (low + n + 1) // 2, np.maximum((high + n) // 2, 0)
    least, most = (pack(np.stack([bound >> k & 1 for k in range(PLANES)]).astype(bool)) for bound in agree)
    return least, most, pack(flip)


def affine(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, threads: int = 1) -> np.ndarray:
    """`pack.affine`."""
    out = np.empty(x.shape, np.float32)
    flat, rows = (np.ascontiguousarray(a).reshape(-1, x.shape[3]) for a in (x, out))
    by_rows(_affine, threads, x.size // 4, len(flat), flat, scale, shift, rows)
    return out


def pool(
    x: np.ndarray, kernel: int, stride: int, padding: int, mean: bool, size: tuple[int, int], threads: int = 1
) -> np.ndarray:
    """The maximum or mean of what of a window lies inside the image: (N, H, W, C) → (N, *size, C)."""
    out = np.empty((len(x), *size, x.shape[3]), np.float32)
    x = np.ascontiguousarray(x)
    by_rows(_pool, threads, out.size * kernel**2 // 4, _rows(out), x, kernel, stride, padding, mean, out)
    return out


def convolution(x: np.ndarray, weights: np.ndarray, stride: int, threads: int = 1) -> np.ndarray:
    """A real-valued convolution of x (N, H, W, C), border included, with (k, k, C, O), summed in float64: (N, H', W', O)."""
    out = np.empty((*_output(x, len(weights), stride, 1), weights.shape[3]), np.float32)
    by_rows(_convolution, threads, out.size * weights[..., 0].size, _rows(out), x, weights, stride, out)
    return out


def _output(x: np.ndarray, kernel: int, stride: int, dilation: int) -> tuple[int, int, int]:
    height, width = ((size - dilation * (kernel - 1) - 1) // stride + 1 for size in x.shape[1:3])
    return len(x), height, width


def _rows(out: np.ndarray) -> int:
    return out.shape[0] * out.shape[1]
