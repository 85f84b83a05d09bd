"""The engine: a compiled network, planned for each batch size when it is first used, safe in any number of threads."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import checks, nn
from fastsparse.arguments import as_cast, is_sparse
from fastsparse.engine.base import BaseEngine
from fastsparse.engine.choosing import Choices
from fastsparse.engine.from_model import program_of
from fastsparse.engine.passes import optimised, uses_of
from fastsparse.engine.program import Linear, Lookup, Program
from fastsparse.engine.report import Report, Row, fastest_seconds, measured
from fastsparse.engine.serial import to_plain
from fastsparse.engine.workspace import Pool, PoolStore
from fastsparse.functional import linear
from fastsparse.nn.containers import first_layer
from fastsparse.nn.shape import embedded, padding_mask
from fastsparse.onnx.engine import GraphEngine, compile_onnx
from fastsparse.runtime.buffers import check_out
from fastsparse.runtime.threads import checked_threads, usable_threads
from fastsparse.runtime.threads import threads as use_threads
from fastsparse.scipy_matrices import compressed_rows
from fastsparse.tflite.to_onnx import model_of as tflite_model

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[Any]
InputShapes: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


@overload
def compile(  # noqa: A001
    model: nn.Sequential,
    input_shape: Sequence[int] | Sequence[Sequence[int]],
    *,
    threads: int | None = ...,
    tune: bool = ...,
    batch_sizes: Sequence[int] = ...,
) -> Engine: ...
@overload
def compile(  # noqa: A001
    model: str | os.PathLike[str] | ModelProto, input_shape: InputShapes | None = ..., *,
    threads: int | None = ..., tune: bool = ..., batch_sizes: Sequence[int] = ..., allow_external_data: bool = ...,
) -> GraphEngine: ...  # fmt: skip


def compile(  # noqa: A001 - the public name of api.md
    model: nn.Sequential | str | os.PathLike[str] | ModelProto, input_shape: InputShapes | None = None, *,
    threads: int | None = None, tune: bool = True, batch_sizes: Sequence[int] = (), allow_external_data: bool = True,
) -> Engine | GraphEngine:  # fmt: skip
    """Compile a network for inference.

    Batch norm is folded, activations are fused, and activations stay in the kernels' layouts from the first layer to
    the last. The engine is a snapshot of the model as it would run in evaluation mode.

    Parameters
    ----------
    model : nn.Sequential, path, or onnx.ModelProto
        A Sequential may be nested. A path is that of an ONNX file, or of a TFLite file when its name ends in
        ".tflite"; reading them needs the extras ``onnx`` and ``tflite``. Inputs and outputs of TFLite models are as in
        the file (images NHWC), and their activations are float32: weights may be sparse, float16 or quantised.
    input_shape : tuple of int, or for models of several inputs a list of them, for ONNX models also a dict
        Batch first; see `batch_sizes` for others. ONNX models that say their shapes need
        none: a batch of no fixed size is 1 then.
    threads : int, optional
        Threads of every call; by default what `fastsparse.get_num_threads()` says when a call is made.
    tune : bool
        Measure once how to cut batches of the size in `input_shape`, instead of estimating it. The results are the
        same bits either way.
    batch_sizes : sequence of int
        Batch sizes, besides that of `input_shape`, to be ready for: they are planned and their kernels compiled now.
        Others are when they are first used.
    allow_external_data : bool
        Read weights of an ONNX model from other files in its folder, too, also through links as Hugging Face's cache
        has them; other places are always refused.

    Returns
    -------
    Engine, or for ONNX and TFLite models GraphEngine

    Raises
    ------
    UnsupportedOperatorError
        Naming the first layer or node that is not supported.
    FileFormatError
        When an ONNX or TFLite file is damaged.
    TypeError, ValueError
        When an argument or the model's layers do not fit.

    Examples
    --------
    >>> import numpy as np, fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(64, 32, activation="relu", rng=0), fs.nn.Linear(32, 10, rng=1))
    >>> engine = fs.compile(model, input_shape=(16, 64))
    >>> engine(np.zeros((5, 64), np.float32)).shape
    (5, 10)
    """
    sizes, tune = checked_batch_sizes(batch_sizes), checks.flag(tune, "tune")
    allow_external_data = checks.flag(allow_external_data, "allow_external_data")
    if isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(".tflite"):
        model = tflite_model(model)
    if isinstance(model, (str, os.PathLike)) or type(model).__name__ == "ModelProto":
        graph = compile_onnx(model, input_shape, threads=threads, tune=tune, allow_external_data=allow_external_data)
        make_ready(graph, sizes)
        return graph
    if not isinstance(model, nn.Sequential):
        kind = type(model).__name__
        raise TypeError(f"model is a {kind}, expected a fastsparse.nn.Sequential, or a path of an ONNX or TFLite file")
    shapes = _checked_shapes(input_shape, 1 if isinstance(first_layer(model), nn.Embedding) else 2)
    threads = None if threads is None else checked_threads(threads, "threads")
    program = optimised(program_of(model, *(shape[1:] for shape in shapes)))
    engine = Engine(program, shapes[0][0], threads)
    engine.prepare(shapes[0][0], tune=tune)
    make_ready(engine, sizes)
    return engine


def _checked_shapes(input_shape: Any, axes: int) -> list[tuple[int, ...]]:
    several = isinstance(input_shape, Sequence) and input_shape and all(isinstance(s, Sequence) for s in input_shape)
    if not several:
        return [_checked_shape(input_shape, axes)]
    shapes = [_checked_shape(shape, 1) for shape in input_shape]
    if len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"input_shape is {input_shape!r}, expected one batch size for all inputs")
    return shapes


def checked_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes as integers of at least 1."""
    try:
        sizes = tuple(operator.index(n) for n in batch_sizes)
    except TypeError:
        raise TypeError(f"batch_sizes is {batch_sizes!r}, expected a sequence of integers") from None
    if min(sizes, default=1) < 1:
        raise ValueError(f"batch_sizes is {batch_sizes!r}, expected integers of at least 1")
    return sizes


def make_ready(engine: Engine | GraphEngine, batch_sizes: Iterable[int]) -> None:
    """Run an engine on made-up numbers: it then has plan, memory and kernels for these batch sizes."""
    for batch in batch_sizes:
        engine.run(engine.random_inputs(batch))


def _checked_shape(input_shape: Any, axes: int) -> tuple[int, ...]:
    try:
        shape = tuple(operator.index(n) for n in input_shape)
    except TypeError:
        found = checks.shown(input_shape)
        raise TypeError(f"input_shape is {found}, expected a tuple of integers, batch first") from None
    if len(shape) < axes or min(shape) < 1:
        least = "(batch, features)" if axes == 2 else "(batch,)"
        raise ValueError(f"input_shape is {shape}, expected at least {least}, all at least 1")
    return shape


class Engine(BaseEngine):
    """A compiled network; made by `fastsparse.compile`.

    Attributes
    ----------
    input_shapes : tuple of tuple of int
        For the batch size it was compiled for.
    input_shape : tuple of int
        The first of them.
    output_shape : tuple of int
    dtype : numpy.dtype
    """

    def __init__(self, program: Program, batch: int, threads: int | None) -> None:
        if len(program.outputs) != 1:
            raise ValueError(f"the program has {len(program.outputs)} outputs, expected one")
        self._program = program
        self._threads = threads
        self._plans = PoolStore()  # by batch and workers
        self._choices = Choices()  # by batch and workers
        self.input_shapes = tuple((batch, *shape) for shape in program.user_shapes)
        self.dtype = program.dtype
        self._sample_shape = program.shapes[program.outputs[0]]
        self.output_shape = (batch, *self._sample_shape)
        self._behind_first: tuple[Linear, Engine | None] | None = None  # made when x is sparse
        self._tune_again = False  # measure at the first call for the compiled batch size

    def __repr__(self) -> str:
        return f"<Engine {', '.join(map(str, self.input_shapes))} -> {self.output_shape}, {self.dtype}>"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first input, as compiled."""
        return self.input_shapes[0]

    def __call__(self, x: ArrayLike | tuple[ArrayLike, ...], *, out: Array | None = None) -> Array:
        """Run the network.

        Parameters
        ----------
        x : array_like (N, ...), or CSR or scipy.sparse (N, features) where the first layer is linear
            Any N; the other sizes as in `input_shape`. float64 is cast to float32 where that is the engine's type, and
            the other way round. A sparse x stays sparse: work follows the matching nonzeros of x and the first weight.
            Integers where the first layer is an Embedding. For a model of several inputs a tuple of arrays.
        out : ndarray (N, ...), optional
            Where to write the result: C-contiguous, of the engine's dtype, apart from x.

        Returns
        -------
        ndarray (N, ...)

        Raises
        ------
        TypeError, ValueError
            When x or out does not fit; nothing has been computed then.
        """
        if is_sparse(x):
            return self._run_sparse(x, out)
        arrays = self._checked(x)
        y = self._output(out, arrays)
        if len(y):
            with self._pool(len(y)).workspace() as workspace:
                workspace.run(arrays, y)
        return y

    def run(self, inputs: Sequence[ArrayLike], *, out: Sequence[Array] | None = None) -> list[Array]:
        """Run on a list of inputs and give a list of outputs, of which there is one."""
        count = len(self.input_shapes)
        if isinstance(inputs, Mapping) or is_sparse(inputs) or not hasattr(inputs, "__len__"):
            raise TypeError(f"inputs is a {type(inputs).__name__}, expected a list of {count}: these have no names")
        if len(inputs) != count:
            raise ValueError(f"inputs has {len(inputs)} arrays, expected {count}")
        if out is not None and len(out) != 1:
            raise ValueError(f"out has {len(out)} arrays, expected 1")
        return [self(inputs[0] if count == 1 else tuple(inputs), out=None if out is None else out[0])]

    def prepare(self, batch: int, *, tune: bool = False) -> None:
        """Plan for a batch size now, instead of at its first call; with `tune` by measuring, unless that was done.

        What a file says was chosen is measured against the estimate, and dropped where that is clearly faster.
        """
        with self._pool(checks.integer(batch, "batch"), tune).workspace():
            pass

    def report(self, batch: int | None = None) -> Report:
        """Measure every step on random numbers and tell what was done with each layer.

        Parameters
        ----------
        batch : int, optional
            Default: the batch size of `input_shape`.

        Returns
        -------
        Report
            To be printed.
        """
        inputs = self.random_inputs(batch)
        user = inputs[0] if len(inputs) == 1 else tuple(inputs)
        x = self._checked(user)
        y = np.empty((len(x[0]), *self._sample_shape), self.dtype)
        with self._pool(len(y)).workspace() as workspace:
            report = measured(self._program, workspace, x, y)
        if any(isinstance(made, Lookup) for made in self._program.lookups):
            spent = fastest_seconds(lambda: self._checked(user)) * 1e3
            row = Row("input", "Embedding", x[0].shape[1:], None, "rows of a table", spent, None)
            report = replace(report, rows=[row, *report.rows])
        return report

    def random_inputs(self, batch: int | None = None) -> list[Array]:
        """Inputs to try the network on: normally distributed numbers, integers for an Embedding, no key padded."""
        count = self.input_shape[0] if batch is None else checks.integer(batch, "batch")
        rng, found = np.random.default_rng(0), []
        for shape, (_, lookup) in zip(self._program.user_shapes, self._program.user_inputs(), strict=True):
            if lookup is None:
                found.append(rng.standard_normal((count, *shape)).astype(self.dtype))
            elif isinstance(lookup, Lookup):
                found.append(rng.integers(0, len(lookup.table), (count, *shape)))
            else:
                found.append(np.zeros((count, *shape), np.bool_))
        return found

    # ------------------------------------------------------------------------------------------

    def _described(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return {"program": to_plain(self._program, arrays), "batch": self.input_shape[0]}

    def _checked(self, x: ArrayLike | tuple[ArrayLike, ...]) -> list[Array]:
        """The inputs as the program reads them."""
        count, found = len(self.input_shapes), list[Array]()
        given = x if isinstance(x, tuple) and count > 1 else (x,)
        if len(given) != count:
            raise ValueError(f"x is one array, expected a tuple of {count}, the inputs of the model")
        for i, (one, shape, (_, lookup)) in enumerate(zip(given, self.input_shapes, self._program.user_inputs())):
            name = "x" if count == 1 else f"x[{i}]"
            array = as_cast(one, self.dtype, name, "the engine") if lookup is None else np.asarray(one)
            if array.ndim != len(shape) or array.shape[1:] != shape[1:] or (found and len(array) != len(found[0])):
                expected = ", ".join(map(str, (len(found[0]) if found else "N", *shape[1:])))
                raise ValueError(f"{name} has shape {array.shape}, expected ({expected}) as compiled")
            if isinstance(lookup, Lookup):
                array = embedded(lookup.table, array, lookup.positions)
            elif lookup is not None:
                array = padding_mask(array, self.dtype, name)
            found.append(np.ascontiguousarray(array))
        return found

    def _run_sparse(self, x: Any, out: Array | None) -> Array:
        """The first layer on sparse x, and the others as an engine of their own."""
        if self._behind_first is None:
            self._behind_first = self._without_first()
        first, others = self._behind_first
        rows = compressed_rows(x, "x")
        if rows.dtype in (np.float32, np.float64):
            rows = rows.astype(self.dtype, copy=False)
        weight, bias = first.weight, None if first.bias is None else np.asarray(first.bias, self.dtype)
        with use_threads(usable_threads(self._threads)):
            y = linear(rows, weight, bias, activation=first.activation, out=out if others is None else None)
        return y if others is None else others(y.reshape(len(y), *others.input_shape[1:]), out=out)

    def _without_first(self) -> tuple[Linear, Engine | None]:
        """The first layer, and what comes behind it."""
        program = self._program
        node, source = program.nodes[0] if program.nodes else None, program.inputs[0]
        alone = (
            not any(program.lookups) and node is not None and node.inputs == (source,) and uses_of(program)[source] == 1
        )
        flat = len(self.input_shapes) == 1 and len(self.input_shape) == 2
        if node is None or not alone or not isinstance(node.operator, Linear) or not flat:
            kind = "no layer" if node is None else node.name
            raise TypeError(
                f"x is sparse, expected a dense array (x.toarray()): the first layer is {kind}, and only a linear one "
                "takes sparse input"
            )
        if program.nodes[1:] == () and program.outputs == (node.output,):
            return node.operator, None
        others = replace(program, inputs=(node.output,), nodes=program.nodes[1:])
        return node.operator, Engine(others, self.input_shape[0], self._threads)

    def _output(self, out: Array | None, x: Sequence[Array]) -> Array:
        shape = (len(x[0]), *self._sample_shape)
        if out is None:
            return np.empty(shape, self.dtype)
        return check_out(out, shape, self.dtype, *x)

    def _pool(self, batch: int, tune: bool = False) -> Pool:
        workers = usable_threads(self._threads)
        key = (batch, workers)
        pool: Pool | None = self._plans.get(key)
        if pool is not None and (not tune or key in self._choices.measured):
            return pool
        tune = tune or (self._tune_again and batch == self.input_shape[0])
        made = Pool(self._choices.schedule(self._program, batch, workers, tune))
        kept: Pool = self._plans.put(key, made, made, replace=tune)
        return kept
