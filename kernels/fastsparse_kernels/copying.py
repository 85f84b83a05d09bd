"""Copying few numbers, any number of them, without masks.

Whole vectors are copied, the last of which overlaps the one before; fewer numbers than a vector has go by shorter
vectors in the same way. Before AVX-512, loads and stores under masks take several times as long.
"""

from __future__ import annotations

from collections.abc import Callable

from . import simd
from .build import kernel_part


def make_copy_numbers(bits: int, lanes: int) -> Callable[..., None]:
    """copy(source, target, count) of `count` > 0 numbers of `bits` bits, by vectors of at most `lanes` numbers."""
    size = bits // 8
    copy_few = _make_copy_few(bits, lanes // 2)

    @kernel_part
    def copy(source, target, count):  # type: ignore[no-untyped-def]
        if count < lanes:
            copy_few(source, target, count)
            return
        like = simd.zeros(1, lanes, bits)
        last, at = (count - lanes) * size, 0
        while at < last:  # `range` with a step would divide to count its turns
            simd.store(simd.load(like, source + at), target + at)
            at += lanes * size
        simd.store(simd.load(like, source + last), target + last)

    return copy


def _make_copy_few(bits: int, lanes: int) -> Callable[..., None]:
    """The same for `count` < 2 * `lanes`: one vector, and where that is too long, a shorter one."""
    if lanes == 1:

        @kernel_part
        def copy_one(source, target, count):  # type: ignore[no-untyped-def]
            simd.store_float(simd.load_float(bits, source), target)

        return copy_one

    copy_fewer = _make_copy_few(bits, lanes // 2)

    @kernel_part
    def copy_few(source, target, count):  # type: ignore[no-untyped-def]
        if count < lanes:
            copy_fewer(source, target, count)
        else:
            like, last = simd.zeros(1, lanes, bits), (count - lanes) * (bits // 8)
            simd.store(simd.load(like, source), target)
            simd.store(simd.load(like, source + last), target + last)

    return copy_few
