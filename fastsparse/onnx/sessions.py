"""Running ONNX nodes by a library: onnxruntime, or ONNX's own evaluator where that is not installed."""

from __future__ import annotations

import ctypes
import functools
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fastsparse import extras
from fastsparse.engine.program import UnsupportedOperatorError
from fastsparse.files import FileFormatError
from fastsparse.onnx import blas
from fastsparse.onnx.model import Array, Constant, Model, Node, SparseWeight, code_of, copied, put_outside
from fastsparse.runtime.fork import after_fork_in_child

_IR = 10  # format of messages: newer ones add nothing that is used here, and libraries refuse those they do not know
_IR_OF_CONSTANTS = 4  # from which on initializers need not be inputs, too
_OUTSIDE = 4096  # bytes from which on constants are handed over as they are, and not put into the message
# On no samples or no times, onnxruntime's end the process.
_NEVER_EMPTY = ("LSTM", "GRU", "com.microsoft.DynamicQuantizeLSTM", "com.microsoft.QAttention")


@functools.cache
def onnxruntime() -> ModuleType | None:
    """The package, where it is installed."""
    try:
        import onnxruntime as found
    except ImportError:
        return None
    return found


def has_onnx() -> bool:
    """Whether the package onnx is there: to load an engine, onnxruntime is enough."""
    return extras.installed("onnx")


def library(found: ModuleType | None = None) -> str:
    """What runs nodes that the kernels do not, by name."""
    return "onnx.reference" if found is None else f"onnxruntime {found.__version__}"


class Session:
    """A model, ready to run.

    Parameters
    ----------
    model : Model
    threads : int
    spinning : bool
        Whether threads may wait for work in a loop; not beside others that need the cores.
    optimised : bool
        Whether the library may rewrite the nodes.

    Raises
    ------
    FileFormatError, UnsupportedOperatorError
        When the nodes cannot be run.
    """

    def __init__(self, model: Model, *, threads: int = 1, spinning: bool = False, optimised: bool = True) -> None:
        self.inputs, self.outputs = (tuple(v.name for v in ends) for ends in (model.inputs, model.outputs))
        self.library, self.threads = onnxruntime(), threads
        if self.library is None:
            self._run = self._by_reference(model)
        else:
            try:
                self._run = self._by_onnxruntime(model, spinning, optimised)
            except FileFormatError:  # an optimisation may break a model that the library can run
                if not optimised:
                    raise
                self._run = self._by_onnxruntime(model, spinning, False)
            except UnsupportedOperatorError as error:  # operators or types that it does not have
                self.library = None
                try:
                    self._run = self._by_reference(model)
                except (ValueError, NotImplementedError):
                    raise error from None
        ends = threads > 1 or any(node.op in _NEVER_EMPTY for node in model.nodes)
        self._model = model if self.library is not None and ends else None  # where empty tensors may end the process
        _sessions.add(self)

    def _by_onnxruntime(self, model: Model, spinning: bool, optimised: bool) -> Any:
        library: Any = self.library
        proto, self._kept = message(model, outside=True)
        options = library.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Sums with quantised weights are of float32 numbers; otherwise inputs are rounded to eight bits, too.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimised:
            options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
        values = [library.OrtValue.ortvalue_from_numpy(array) for array in self._kept.values()]
        if values:
            options.add_external_initializers(list(self._kept), values)
        content = serialised(proto)
        try:
            made = library.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:
            raise _refusal(error) from error
        made._model_bytes = None
        self.native = made
        return functools.partial(made._sess.run, list(self.outputs))

    def _by_reference(self, model: Model) -> Any:
        extras.require("an ONNX model", "onnx", onnx="onnxruntime, or onnx,")
        from onnx.reference import ReferenceEvaluator

        proto, _ = message(model)
        try:
            evaluator = ReferenceEvaluator(proto)
        except Exception as error:
            raise _refusal(error) from error
        names = list(self.outputs)

        def run(feeds: dict[str, Any], options: None) -> Any:
            with warnings.catch_warnings(), np.errstate(all="ignore"), blas.one_thread():
                warnings.simplefilter("ignore")
                return evaluator.run(names, feeds)

        return run

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        """Outputs for inputs by name; arrays are read where they are.

        Raises
        ------
        ValueError
            When a node cannot be computed.
        """
        run = self._run  # of feeds, and options of a run
        if self._model is not None and any(map(_is_empty, feeds.values())):
            self._refuse_empty(feeds, self._model)
            if self.threads > 1:  # onnxruntime's quantised sums may end the process over nothing that threads share
                run = Session(self._model)._run
        try:
            return run(feeds, None)
        except Exception as error:
            raise run_error(error) from error

    def _refuse_empty(self, feeds: Mapping[str, Any], model: Model) -> None:
        """Raise ValueError where the first of the nodes that must not would read nothing."""
        first: dict[str, Node] = {}  # that read a tensor
        behind, before = set[str](), list[Node]()  # such a node
        for node in model.nodes:
            never, alone = node.op in _NEVER_EMPTY, behind.isdisjoint(node.reads)
            if alone and not never:
                before.append(node)
                continue
            if alone:
                first.setdefault(node.inputs[0], node)
            behind.update(node.writes)
        found = {name: feeds[name] for name in first if name in feeds}
        made = {name for node in before for name in node.writes}
        if inner := [name for name in first if name in made]:
            found.update(zip(inner, Session(model.part(before, self.inputs, inner)).run(dict(feeds))))
        for name, x in found.items():
            if _is_empty(x):
                raise ValueError(f"the model cannot be computed: {first[name]} reads an empty tensor, of {x.shape}")

    def may_write(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether outputs of these shapes may be bound: the library may infer other sizes than it computes."""
        inferred = {value.name: value.shape for value in self.native.get_outputs()}  # [] where it says nothing
        return all(
            not (sizes := inferred[name]) or (len(sizes) == len(shape) and all(map(_may_be, sizes, shape)))
            for name, shape in shapes.items()
        )

    def binding(self) -> Any:
        """An onnxruntime binding: inputs and outputs at fixed addresses. None where there is no onnxruntime."""
        return None if self.library is None else self.native.io_binding()._iobinding

    def bound_run(self, binding: Any) -> Callable[[], None]:
        """A call that runs on what was bound."""
        return functools.partial(self.native._sess.run_with_iobinding, binding, None)


def _may_be(size: int | str | None, n: int) -> bool:
    return not isinstance(size, int) or size == n


def _is_empty(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 0


@functools.cache
def device() -> Any:
    """The CPU, as bindings name it."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return state.OrtDevice(state.OrtDevice.cpu(), state.OrtDevice.default_memory(), 0)


# ---------------------------------------------------------------- errors


_MISSING = ("NotImplemented", "NOT_IMPLEMENTED", "not a registered", "No Op registered", "is not supported",
            "No implementation", "is under development")  # fmt: skip


def _refusal(error: Exception) -> Exception:
    text = _sentence(error)
    if isinstance(error, NotImplementedError) or any(word in f"{type(error).__name__} {text}" for word in _MISSING):
        return UnsupportedOperatorError(f"{library(onnxruntime())} cannot run the model: {text}")
    return FileFormatError(f"the model is damaged, or breaks the rules of ONNX: {text}")


def run_error(error: Exception) -> ValueError:
    """What the library said, as an error of ours."""
    return ValueError(f"the model cannot be computed: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:600]


# ---------------------------------------------------------------- messages


def message(model: Model, outside: bool = False) -> tuple[Any, dict[str, Array]]:
    """The ModelProto of a model, and the large constants that are not in it where `outside` permits that."""
    proto = copied(model.header)
    proto.ir_version = max(_IR_OF_CONSTANTS, min(proto.ir_version, _IR))
    graph = proto.graph
    graph.name = "part"
    for ends, values in ((graph.input, model.inputs), (graph.output, model.outputs)):
        for end in values:
            ends.add(name=end.name)
            if end.proto is not None:
                ends[-1].CopyFrom(end.proto)
    made = {name for node in model.nodes for name in node.writes}
    made.update(value.name for value in model.inputs)
    read = {name for node in model.nodes for name in node.reads}.union(value.name for value in model.outputs)
    kept: dict[str, Array] = {}
    for name in sorted(read & model.constants.keys() - made):
        constant: Constant = model.constants[name]
        if isinstance(constant, SparseWeight):
            constant = constant.dense()
        if not isinstance(constant, np.ndarray):
            graph.initializer.append(constant)
            graph.initializer[-1].name = name
        elif outside and constant.nbytes >= _OUTSIDE:
            kept[name] = np.ascontiguousarray(constant)
            tensor = graph.initializer.add(name=name, data_type=code_of(constant.dtype), dims=constant.shape)
            put_outside(tensor, f"#{len(kept)}", 0, constant.nbytes)
        else:
            little = constant.astype(constant.dtype.newbyteorder("<"), copy=False)
            dims, code = constant.shape, code_of(constant.dtype)
            graph.initializer.add(name=name, data_type=code, dims=dims, raw_data=little.tobytes())
    for node in model.nodes:
        graph.node.extend(node.protos)
    return proto, kept


def serialised(proto: Any) -> bytes:
    """The message's bytes.

    Raises
    ------
    FileFormatError
        When they would be more than protocol buffers allow.
    """
    from google.protobuf.message import EncodeError

    try:
        return proto.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise FileFormatError(f"the model cannot be written as one message: {error}") from error


def declare(value: Any, code: int, sizes: Sequence[int | str | None] | None) -> None:
    """Say in a ValueInfoProto that it is a tensor of a type, and of which shape, as far as that is known."""
    kind = value.type.tensor_type
    kind.elem_type = code
    kind.ClearField("shape")
    if sizes is not None:
        kind.shape.SetInParent()
    for n in sizes or ():
        kind.shape.dim.add(**({} if n is None else {"dim_value" if isinstance(n, int) else "dim_param": n}))


# ---------------------------------------------------------------- fork

# Threads do not survive fork(): a child makes its sessions anew, and leaves its parent's alone for good, since taking
# them down would wait for their threads.
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
generation = [0]


@after_fork_in_child
def _forget_sessions() -> None:
    generation[0] += 1
    if "onnxruntime" in sys.modules:
        # A child that ends by itself would wait for ever for a thread of onnxruntime's own, which it does not have:
        # when Python is done it ends at once, with its status.
        libc = ctypes.CDLL(None)
        if hasattr(libc, "on_exit"):
            libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    for session in list(_sessions):
        if session.library is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
