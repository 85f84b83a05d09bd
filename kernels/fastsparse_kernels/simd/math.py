"""Mathematics on vector registers: one text for every number of lanes, float32 and float64.

A function of `Lanes` is ordinary Python that runs while a kernel is compiled: arithmetic on `Lanes` emits vector
instructions. `lanewise` turns it into an intrinsic on tiles. A lane's result depends on that lane alone and comes from
the same operations whatever the vector's width, so tails, serial twins and every CPU give the same bits.

Transcendental functions are polynomials after a range reduction; NaN travels through all of them.

Rejected: one Numba intrinsic per operation (each use is typed anew, which made an activation ten times slower to
compile), LLVM's vector `exp` and a C library's `expf` (scalar calls without a vector maths library, other bits on
other machines).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from . import types as tiles
from .types import instruction


class Mask:
    """One truth value per lane."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.and_(self.value, other.value))

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.or_(self.value, other.value))


class Lanes:
    """One vector while code is generated. Numbers it meets are spread over all lanes; every operation rounds once."""

    __slots__ = ("builder", "tile", "value")

    def __init__(self, builder: Any, tile: tiles.Tile, value: Any) -> None:
        self.builder, self.tile, self.value = builder, tile, value

    def broadcast(self, number: Lanes | float) -> Lanes:
        """`number` in every lane of a vector like this one."""
        if isinstance(number, Lanes):
            return number
        return Lanes(self.builder, self.tile, ir.Constant(self.tile.vector, [float(number)] * self.tile.lanes))

    def _emit(self, operation: Callable[..., Any], left: Lanes | float, right: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.tile, operation(self.broadcast(left).value, self.broadcast(right).value))

    def _compare(self, operator: str, other: Lanes | float) -> Mask:
        """Ordered comparison: false where either side is NaN."""
        return Mask(self.builder, self.builder.fcmp_ordered(operator, self.value, self.broadcast(other).value))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._emit(self.builder.fadd, self, other)

    def __radd__(self, other: float) -> Lanes:
        return self._emit(self.builder.fadd, other, self)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._emit(self.builder.fsub, self, other)

    def __rsub__(self, other: float) -> Lanes:
        return self._emit(self.builder.fsub, other, self)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._emit(self.builder.fmul, self, other)

    def __rmul__(self, other: float) -> Lanes:
        return self._emit(self.builder.fmul, other, self)

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return self._emit(self.builder.fdiv, self, other)

    def __rtruediv__(self, other: float) -> Lanes:
        return self._emit(self.builder.fdiv, other, self)

    def __neg__(self) -> Lanes:
        return Lanes(self.builder, self.tile, self.builder.fneg(self.value))

    def __lt__(self, other: Lanes | float) -> Mask:
        return self._compare("<", other)

    def __le__(self, other: Lanes | float) -> Mask:
        return self._compare("<=", other)

    def __gt__(self, other: Lanes | float) -> Mask:
        return self._compare(">", other)

    def __ge__(self, other: Lanes | float) -> Mask:
        return self._compare(">=", other)

    def is_number(self) -> Mask:
        """True where the lane is not NaN."""
        return Mask(self.builder, self.builder.fcmp_ordered("ord", self.value, self.value))

    @property
    def integers(self) -> ir.Type:
        """The LLVM type of this vector's bits read as integers."""
        return ir.VectorType(ir.IntType(self.tile.bits), self.tile.lanes)

    def integer(self, number: int) -> Any:
        """An integer in every lane, as an LLVM value."""
        return ir.Constant(self.integers, [number] * self.tile.lanes)

    def bits(self) -> Any:
        """The bits of every lane as integers, an LLVM value."""
        return self.builder.bitcast(self.value, self.integers)

    def from_bits(self, value: Any) -> Lanes:
        """A vector like this one from integers."""
        return Lanes(self.builder, self.tile, self.builder.bitcast(value, self.tile.vector))


def where(mask: Mask, yes: Lanes | float, no: Lanes | float) -> Lanes:
    """`yes` where the mask is true, `no` elsewhere; at least one of the two is a vector."""
    like = yes if isinstance(yes, Lanes) else no
    assert isinstance(like, Lanes)
    value = mask.builder.select(mask.value, like.broadcast(yes).value, like.broadcast(no).value)
    return Lanes(mask.builder, like.tile, value)


def fma(a: Lanes, b: Lanes | float, c: Lanes | float) -> Lanes:
    """a * b + c, rounded once."""
    operation = tiles.fma_function(a.builder, a.tile)
    return Lanes(a.builder, a.tile, operation(a.value, a.broadcast(b).value, a.broadcast(c).value))


def clip(x: Lanes, low: float, high: float) -> Lanes:
    """x held between two numbers; NaN stays."""
    x = where(x.broadcast(low) > x, low, x)
    return where(x.broadcast(high) < x, high, x)


def absolute(x: Lanes) -> Lanes:
    """abs(x), by clearing the sign bit."""
    return x.from_bits(x.builder.and_(x.bits(), x.integer((1 << (x.tile.bits - 1)) - 1)))


def with_sign_of(sign: Lanes, magnitude: Lanes) -> Lanes:
    """abs(magnitude) with the sign of `sign`."""
    top = sign.builder.and_(sign.bits(), sign.integer(1 << (sign.tile.bits - 1)))
    return sign.from_bits(sign.builder.or_(absolute(magnitude).bits(), top))


def sqrt(x: Lanes) -> Lanes:
    """The correctly rounded square root."""
    operation = tiles.llvm_function(
        x.builder, f"llvm.sqrt.v{x.tile.lanes}f{x.tile.bits}", x.tile.vector, [x.tile.vector]
    )
    return Lanes(x.builder, x.tile, operation(x.value))


def polynomial(x: Lanes, coefficients: tuple[float, ...]) -> Lanes:
    """coefficients[0] + coefficients[1] x + ..., by Horner's rule with one FMA per term."""
    total = x.broadcast(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fma(total, x, coefficient)
    return total


# ---------------------------------------------------------------- exponential

# All polynomials here are Chebyshev interpolants, computed with 60 digits and rounded to float64.
# (exp(r) - 1 - r) / r^2 on abs(r) <= log(2) / 2; exp's relative error is below 0.2 u.
_EXP = {
    32: (0.5, 0.16666576986698775, 0.041666554617204574, 0.008363179052722578, 0.0013926183587713494),
    64: (
        0.5000000000000001, 0.16666666666666669, 0.04166666666662413, 0.008333333333330062, 0.0013888888917213717,
        0.00019841269863053618, 2.4801521295954376e-05, 2.7557268459997064e-06, 2.7620088445409746e-07,
        2.510038549551032e-08,
    ),
}  # fmt: skip
_MANTISSA = {32: 23, 64: 52}
# log(2) in two parts; the first has so few bits that its product with any exponent is exact.
_LOG2_HIGH = {32: 0.693145751953125, 64: 0.6931471803691238}
_LOG2_LOW = {32: 1.4286068203094172e-06, 64: 1.9082149292705877e-10}


def _exp_parts(x: Lanes) -> tuple[Lanes, Lanes]:
    """(s, q) with exp(x) = s (1 + q), s a power of two and q = exp(r) - 1 for a remainder abs(r) <= log(2) / 2.

    The argument is clamped to where s becomes 0 and inf. So exp overflows and vanishes at most one power of two
    early (there are no subnormal results), and exp(-inf) = 0, exp(inf) = inf need no case of their own.
    """
    bits, mantissa = x.tile.bits, _MANTISSA[x.tile.bits]
    bias = (1 << (bits - mantissa - 2)) - 1
    x = clip(x, -bias * math.log(2), (bias + 1) * math.log(2))
    # Adding 1.5 * 2^mantissa leaves the nearest integer in the lowest bits.
    shifter = 1.5 * 2.0**mantissa
    shifted = fma(x, 1 / math.log(2), shifter)
    exponent = shifted - shifter
    r = fma(exponent, -_LOG2_HIGH[bits], x)
    r = fma(exponent, -_LOG2_LOW[bits], r)
    raised = x.builder.shl(x.builder.add(shifted.bits(), x.integer(bias)), x.integer(mantissa))
    return x.from_bits(raised), fma(polynomial(r, _EXP[bits]), r * r, r)


def exp(x: Lanes) -> Lanes:
    """e^x to about 1 u, relative; results below the smallest normal number are 0."""
    scale, q = _exp_parts(x)
    return scale * (1.0 + q)  # fma(scale, q, scale) would be inf - inf at the upper end


def expm1_of_negative(x: Lanes) -> Lanes:
    """e^x - 1 for x <= 0 to about 2 u, relative, also next to 0."""
    scale, q = _exp_parts(x)
    return fma(scale, q, scale - 1.0)


# ---------------------------------------------------------------- sigmoid, tanh, the normal distribution


def sigmoid(x: Lanes) -> Lanes:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + exp(-x))


def sigmoid_pair(x: Lanes) -> tuple[Lanes, Lanes]:
    """sigmoid(x) and 1 - sigmoid(x), both without cancellation."""
    small = exp(-absolute(x))
    big_side = 1.0 / (1.0 + small)
    small_side = small * big_side
    positive = x >= 0.0
    return where(positive, big_side, small_side), where(positive, small_side, big_side)


def tanh(x: Lanes) -> Lanes:
    """Hyperbolic tangent to a few u, relative, also next to 0."""
    e = expm1_of_negative(-2.0 * absolute(x))
    return with_sign_of(x, e / (e + 2.0))


# exp(a^2 / 2) Phi(-a) / t as a polynomial in 2t - 1, where t = k / (a + k), for 0 <= a until Phi(-a) vanishes. The
# substitution is that of Shepherd and Laframboise, Chebyshev approximation of (1 + 2x) exp(x^2) erfc x in
# 0 <= x < inf, Mathematics of Computation 36 (1981). The relative error is below 0.3 u.
_TAIL_SCALE = {32: 4.0, 64: 5.0}
_TAIL = {
    32: (
        0.18882128448784688, 0.151974158267482, 0.09678417522089702, 0.04663056890558831, 0.015101709911310273,
        0.0018830056155227238, -0.0008823150350395597, -0.0003942105830646916, 5.250132853308053e-05,
        2.9124078746480386e-05,
    ),
    64: (
        0.15383860995001258, 0.13307650057801138, 0.09906112319399489, 0.06270663133425892, 0.03300407323409744,
        0.013823727741311943, 0.004159013359555559, 0.0005986753535868432, -0.00015957387526110894,
        -0.00010897981072969791, -1.1875172488326293e-05, 9.952562458450192e-06, 3.33634166451666e-06,
        -7.962147357782782e-07, -5.54075098739231e-07, 6.74662631938522e-08, 8.691549144161165e-08,
        -8.727646380095724e-09, -1.3366320557293772e-08, 2.1212602505256355e-09, 1.539691836743065e-09,
        -4.493786561194724e-10,
    ),
}  # fmt: skip


def normal_cdf_pdf(x: Lanes) -> tuple[Lanes, Lanes]:
    """The standard normal law's distribution function and density at x."""
    bits, a = x.tile.bits, absolute(x)
    t = _TAIL_SCALE[bits] / (a + _TAIL_SCALE[bits])
    bell = exp(-0.5 * a * a)
    tail = polynomial(fma(t, 2.0, -1.0), _TAIL[bits]) * t * bell
    return where(x > 0.0, 1.0 - tail, tail), bell * (1 / math.sqrt(2 * math.pi))


# ---------------------------------------------------------------- on tiles


def lanewise(function: Callable[..., Lanes], inputs: int) -> Any:
    """The intrinsic on `inputs` (1 to 3) tiles of one type that applies `function` to their vectors, giving a tile."""

    def emit(builder: Any, args: Any, tile: tiles.Tile, *_: Any) -> Any:
        def one(*vectors: Any) -> Any:
            return function(*(Lanes(builder, tile, vector) for vector in vectors)).value

        return tiles.elementwise(builder, tile, one, *args)

    names = ("builder", "args", "a", "b", "c")[: 2 + inputs]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    emit.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return instruction()(emit)


multiply = lanewise(lambda a, b: a * b, 2)
multiply_add = lanewise(fma, 3)  # a * b + c, rounded once


@instruction()
def convert(builder: Any, args: Any, like: Any, tile: Any) -> Any:
    """The tile's numbers, widened or rounded to the type of `like`."""
    if like.bits == tile.bits:
        return args[1]
    cast = builder.fpext if like.bits > tile.bits else builder.fptrunc
    vectors = tiles.unpack(builder, args[1], tile.count)
    return tiles.pack(builder, like.vector, [cast(vector, like.vector) for vector in vectors])


@instruction()
def broadcast(builder: Any, args: Any, like: Any, number: Any) -> Any:
    """`number` (a scalar of the tile's type) in every lane."""
    return tiles.pack(builder, like.vector, [tiles.splat(builder, like, args[1])] * like.count)


@instruction()
def keep_first(builder: Any, args: Any, tile: Any, count: Any) -> Any:
    """The tile's first `count` elements, zeros after them."""
    kept = []
    for i, vector in enumerate(tiles.unpack(builder, args[0], tile.count)):
        mask = tiles.first_lanes(builder, tile, tiles.shifted(builder, args[1], -i * tile.lanes))
        kept.append(builder.select(mask, vector, ir.Constant(tile.vector, None)))
    return tiles.pack(builder, tile.vector, kept)


def make_horizontal(combine: Callable[[Lanes, Lanes], Lanes]) -> Any:
    """The intrinsic that combines all elements of a tile to one number, by halves."""

    @instruction(lambda tile: tiles.NUMBA_FLOATS[tile.bits])
    def combined(builder: Any, args: Any, tile: Any) -> Any:
        vectors = [Lanes(builder, tile, value) for value in tiles.unpack(builder, args[0], tile.count)]
        while len(vectors) > 1:
            half = (len(vectors) + 1) // 2
            pairs = [combine(a, b) for a, b in zip(vectors[:half], vectors[half:], strict=False)]
            vectors = pairs + vectors[len(pairs) : half]
        vector, lanes = vectors[0].value, tile.lanes
        while lanes > 1:
            lanes //= 2
            shorter = tiles.Tile(1, lanes, tile.bits)
            halves = (range(i * lanes, (i + 1) * lanes) for i in (0, 1))
            low, high = (Lanes(builder, shorter, tiles.shuffle(builder, vector, vector, half)) for half in halves)
            vector = combine(low, high).value
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return combined


horizontal_sum = make_horizontal(lambda a, b: a + b)
horizontal_max = make_horizontal(lambda a, b: where(b > a, b, a))
