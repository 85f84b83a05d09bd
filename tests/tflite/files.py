"""Small TFLite files, written with flatbuffers, as converters write them."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
import tflite

TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int8": 9, "resource": 13}


class Writer:
    """Tensors and operators of a model, gathered one by one; tensors are numbers."""

    def __init__(self) -> None:
        self.b = flatbuffers.Builder(1024)
        self.buffers: list[int] = [self._buffer(None)]
        self.tensors: list[dict[str, Any]] = []
        self.operators: list[tuple[int, list[int], list[int], str | None, int]] = []
        self.codes: list[tuple[int, str | None]] = []

    # ---------------------------------------------------------------- vectors and tables

    def _buffer(self, data: bytes | None) -> int:
        vector = None if data is None else self.b.CreateByteVector(data)
        tflite.BufferStart(self.b)
        if vector is not None:
            tflite.BufferAddData(self.b, vector)
        return tflite.BufferEnd(self.b)

    def _offsets(self, offsets: list[int]) -> int:
        self.b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.b.PrependUOffsetTRelative(offset)
        return self.b.EndVector()

    def _numbers(self, values: Any, dtype: str = "int32") -> int:
        return self.b.CreateNumpyVector(np.asarray(values, dtype))

    # ---------------------------------------------------------------- tensors

    def tensor(self, shape: Any, dtype: str = "float32", data: Any = None, **more: Any) -> int:
        """A tensor; `data` are the bytes that it holds. more : sparsity=levels, scale=, zero_point=, axis=."""
        if data is not None:
            self.buffers.append(self._buffer(np.ascontiguousarray(data).tobytes()))
        place = len(self.buffers) - 1 if data is not None else 0
        self.tensors.append({"shape": shape, "dtype": dtype, "buffer": place, **more})
        return len(self.tensors) - 1

    def constant(self, array: Any, **more: Any) -> int:
        """A tensor with its numbers."""
        array = np.asarray(array)
        return self.tensor(array.shape, array.dtype.name, array, **more)

    def sparse(self, array: Any, kind: str = "u1", order: Any = None, block: Any = ()) -> int:
        """A tensor of which the nonzeros alone are held: all levels dense but the one of its last axis.

        kind : type of the indices. order : of traversal. block : (axis, size) pairs.
        """
        array, rank = np.asarray(array), np.ndim(array)
        order = list(range(rank)) if order is None else order
        sizes = [n // dict(block).get(axis, 1) for axis, n in enumerate(array.shape)]
        blocked = array
        for i, (axis, size) in enumerate(block):  # (..., n, ...) -> (..., n / size, ..., size)
            at = axis
            blocked = blocked.reshape(*blocked.shape[:at], sizes[axis], size, *blocked.shape[at + 1 :])
            blocked = np.moveaxis(blocked, at + 1, rank + i)
        full = [*order, *range(rank, rank + len(block))]
        moved = blocked.transpose(full)
        compressed = rank - 1  # the innermost level that is no block
        inside = moved.reshape(int(np.prod(moved.shape[:compressed])), moved.shape[compressed], -1)
        kept = (inside != 0).any(axis=2)
        levels: list[Any] = [moved.shape[i] for i in range(compressed)]
        levels.append((np.concatenate([[0], np.cumsum(kept.sum(1))]), np.nonzero(kept)[1]))
        levels += [size for _, size in block]
        sparsity = {"order": full, "blocks": [axis for axis, _ in block], "levels": levels, "kind": kind}
        return self.tensor(array.shape, array.dtype.name, inside[kept], sparsity=sparsity)

    def _vector_table(self, values: Any, kind: str) -> tuple[int, int]:
        name, number = {"i4": ("Int32Vector", 1), "u2": ("Uint16Vector", 2), "u1": ("Uint8Vector", 3)}[kind]
        vector = self._numbers(values, kind)
        getattr(tflite, f"{name}Start")(self.b)
        getattr(tflite, f"{name}AddValues")(self.b, vector)
        return getattr(tflite, f"{name}End")(self.b), number

    def _sparsity(self, sparsity: dict[str, Any]) -> int:
        levels = []
        for level in sparsity["levels"]:
            tables = (
                [self._vector_table(values, sparsity["kind"]) for values in level] if isinstance(level, tuple) else []
            )
            tflite.DimensionMetadataStart(self.b)
            tflite.DimensionMetadataAddFormat(self.b, int(bool(tables)))
            if tables:
                tflite.DimensionMetadataAddArraySegmentsType(self.b, tables[0][1])
                tflite.DimensionMetadataAddArraySegments(self.b, tables[0][0])
                tflite.DimensionMetadataAddArrayIndicesType(self.b, tables[1][1])
                tflite.DimensionMetadataAddArrayIndices(self.b, tables[1][0])
            else:
                tflite.DimensionMetadataAddDenseSize(self.b, level)
            levels.append(tflite.DimensionMetadataEnd(self.b))
        parts = self._numbers(sparsity["order"]), self._numbers(sparsity["blocks"]), self._offsets(levels)
        tflite.SparsityParametersStart(self.b)
        tflite.SparsityParametersAddTraversalOrder(self.b, parts[0])
        if sparsity["blocks"]:
            tflite.SparsityParametersAddBlockMap(self.b, parts[1])
        tflite.SparsityParametersAddDimMetadata(self.b, parts[2])
        return tflite.SparsityParametersEnd(self.b)

    def _tensor(self, i: int, tensor: dict[str, Any]) -> int:
        name, shape = self.b.CreateString(f"t{i}"), self._numbers(tensor["shape"])
        sparsity = self._sparsity(tensor["sparsity"]) if "sparsity" in tensor else None
        quantisation = None
        if "scale" in tensor:
            scale = self._numbers(np.atleast_1d(tensor["scale"]), "f4")
            zero = self._numbers(np.atleast_1d(tensor.get("zero_point", np.zeros(np.size(tensor["scale"])))), "i8")
            tflite.QuantizationParametersStart(self.b)
            tflite.QuantizationParametersAddScale(self.b, scale)
            tflite.QuantizationParametersAddZeroPoint(self.b, zero)
            tflite.QuantizationParametersAddQuantizedDimension(self.b, tensor.get("axis", 0))
            quantisation = tflite.QuantizationParametersEnd(self.b)
        tflite.TensorStart(self.b)
        tflite.TensorAddShape(self.b, shape)
        tflite.TensorAddType(self.b, TYPES[tensor["dtype"]])
        tflite.TensorAddBuffer(self.b, tensor["buffer"])
        tflite.TensorAddName(self.b, name)
        if sparsity is not None:
            tflite.TensorAddSparsity(self.b, sparsity)
        if quantisation is not None:
            tflite.TensorAddQuantization(self.b, quantisation)
        return tflite.TensorEnd(self.b)

    # ---------------------------------------------------------------- operators

    def add(self, kind: str, inputs: list[int], shape: Any, options: str | None = None, dtype: str = "float32",
            **fields: Any) -> int:  # fmt: skip
        """An operator of one output of a shape; fields of its options by name. The number of the output."""
        output = self.tensor(shape, dtype)
        table = 0
        if options is not None:
            vectors = {name: self._numbers(value) for name, value in fields.items() if isinstance(value, list)}
            getattr(tflite, f"{options}Start")(self.b)
            for name, value in fields.items():
                getattr(tflite, f"{options}Add{name}")(self.b, vectors.get(name, value))
            table = getattr(tflite, f"{options}End")(self.b)
        number = getattr(tflite.BuiltinOperator, kind, None)
        code = (32, kind) if number is None else (number, None)
        if code not in self.codes:
            self.codes.append(code)
        self.operators.append((self.codes.index(code), inputs, [output], options, table))
        return output

    def _code(self, number: int, custom: str | None) -> int:
        name = None if custom is None else self.b.CreateString(custom)
        tflite.OperatorCodeStart(self.b)
        tflite.OperatorCodeAddBuiltinCode(self.b, number)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(self.b, min(number, 127))
        if name is not None:
            tflite.OperatorCodeAddCustomCode(self.b, name)
        return tflite.OperatorCodeEnd(self.b)

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        """The file."""
        tensors = self._offsets([self._tensor(i, tensor) for i, tensor in enumerate(self.tensors)])
        made = []
        for code, read, written, options, table in self.operators:
            vectors = self._numbers(read), self._numbers(written)
            tflite.OperatorStart(self.b)
            tflite.OperatorAddOpcodeIndex(self.b, code)
            tflite.OperatorAddInputs(self.b, vectors[0])
            tflite.OperatorAddOutputs(self.b, vectors[1])
            if options is not None:
                tflite.OperatorAddBuiltinOptionsType(self.b, getattr(tflite.BuiltinOptions, options))
                tflite.OperatorAddBuiltinOptions(self.b, table)
            made.append(tflite.OperatorEnd(self.b))
        operators, ends = self._offsets(made), (self._numbers(inputs), self._numbers(outputs))
        tflite.SubGraphStart(self.b)
        tflite.SubGraphAddTensors(self.b, tensors)
        tflite.SubGraphAddInputs(self.b, ends[0])
        tflite.SubGraphAddOutputs(self.b, ends[1])
        tflite.SubGraphAddOperators(self.b, operators)
        graphs = self._offsets([tflite.SubGraphEnd(self.b)])
        codes, buffers = self._offsets([self._code(*code) for code in self.codes]), self._offsets(self.buffers)
        tflite.ModelStart(self.b)
        tflite.ModelAddVersion(self.b, 3)
        tflite.ModelAddOperatorCodes(self.b, codes)
        tflite.ModelAddSubgraphs(self.b, graphs)
        tflite.ModelAddBuffers(self.b, buffers)
        self.b.Finish(tflite.ModelEnd(self.b), b"TFL3")
        return bytes(self.b.Output())
