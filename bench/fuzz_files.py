"""Damage files of every format at random, load them and run what was loaded (contracts F2 and F4).

    python -m bench.fuzz_files --count 100000

Half of the files are damaged bytes: flips, cuts, pieces moved. The others are well-formed, with a valid digest, and
have fields dropped, repeated, exchanged, or set to what is out of range, of another type or somebody else's. Every file
must load as something that runs within its memory and gives results of the right shape, or be refused with
`fastsparse.FileFormatError`. Anything else ends the worker that loads it, and the case's number is told; `--only`
repeats it. Files of other libraries (ONNX, TFLite, safetensors, torch.save) are damaged in the same two ways.

Workers have limited memory, so that what a file declares cannot be allocated unless its size justifies it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastsparse as fs
from bench import foreign_files, guarded
from bench.damage import damaged, hostile, rewired, with_other_header
from bench.guarded import work
from fastsparse import files, nn
from fastsparse.engine.program import UnsupportedOperatorError

LOADING = 256 << 20  # bytes that loading may take beyond what the process has when the fuzzing starts
RUNNING = 1 << 30  # the same for running what was loaded
LARGEST_RUN = 1 << 24  # numbers in the inputs of what is run; larger networks are only loaded


# ---------------------------------------------------------------- what is saved, loaded and run


def model() -> nn.Sequential:
    """A small model with most kinds of layers."""
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.SparseConv2d(2, 4, 3, padding=1, bias=False, sparsity=0.5, rng=rng),
        nn.BatchNorm2d(4),
        nn.Residual(nn.Conv2d(4, 4, 1, rng=rng), nn.SparseConv2d(4, 4, 1, rng=rng), "relu"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1, rng=rng),
        nn.SparseLinear(16, 8, activation="gelu", rng=rng),
        nn.LayerNorm(8),
        nn.Linear(8, 3, rng=rng),
    )


def network() -> nn.Sequential:
    """A network that becomes all operators of an engine's program."""
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.BatchNorm2d(2),
        nn.SparseConv2d(2, 4, 3, padding=((0, 1), (1, 0)), sparsity=0.5, rng=rng),
        nn.Residual(nn.SparseConv2d(4, 4, 3, padding=1, rng=rng), activation="relu"),
        nn.Residual(nn.MaxPool2d(3, 1, 1), nn.SparseConv2d(4, 4, 1, rng=rng), "relu"),
        nn.Tanh(),
        nn.SparseConv2d(4, 4, 3, stride=2, padding=1, groups=2, rng=rng),
        nn.AvgPool2d(2),
        nn.SparseConv2d(4, 16, 2, rng=rng),
        nn.Flatten(),
        nn.Residual(nn.SparseLinear(16, 16, activation="gelu", rng=rng)),
        nn.Linear(16, 3, rng=rng),
    )


def onnx_model() -> Any:
    """An ONNX model of sparse layers, dense ones, and operators between them."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return np.where(rng.random(shape) < 0.8, 0, rng.standard_normal(shape)).astype(np.float32)

    constants = {
        "w1": weight(8, 2, 3, 3), "b1": weight(8), "w2": weight(8, 8, 1, 1), "w3": weight(72, 32), "w4": weight(32, 6),
        "shape": np.array([0, -1]), "axes": np.array([1]), "start": np.array([1]), "end": np.array([9]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"]),
        node("Add", ["b", "c"], ["d"]),
        node("MaxPool", ["d"], ["e"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Reshape", ["e", "shape"], ["f"]),
        node("Slice", ["f", "start", "end", "axes"], ["s"]),
        node("Concat", ["f", "s"], ["g"], axis=1),
        node("Gemm", ["f", "w3"], ["h"], alpha=0.5),
        node("Softmax", ["h"], ["i"], axis=-1),
        node("Gelu", ["i"], ["j"], approximate="tanh"),
        node("MatMul", ["j", "w4"], ["y"]),
        node("ReduceMean", ["g", "axes"], ["z"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "fuzzed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 10, 10])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    found.ir_version = 10
    return found


def _save_model(path: Path) -> None:
    fs.save(model(), path)


def _run_model(loaded: Any) -> None:
    x = np.random.default_rng(1).standard_normal((3, 2, 4, 4)).astype(np.float32)
    try:
        y = loaded(x)
    except (ValueError, TypeError):  # another network than the one that was saved, which takes another input
        return
    assert isinstance(y, np.ndarray), type(y)
    assert len(y) == 3, y.shape


def _save_engine(path: Path) -> None:
    engine = fs.compile(network(), (3, 2, 9, 10), tune=False)
    engine.prepare(3, tune=True)
    engine.save(path)


def _guarded(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Callable[[], bool]]:
    """An array among others, and whether those still hold what they held."""
    size, margin = int(np.prod(shape)), 1 << 12
    whole = np.full(size + 2 * margin, -77, dtype)
    inner = whole[margin : margin + size]
    return inner.reshape(shape), lambda: bool((whole[:margin] == -77).all() and (whole[margin + size :] == -77).all())


def _run_engine(engine: Any) -> None:
    rng = np.random.default_rng(1)
    for batch in (1, 3, 33):
        shape = (batch, *engine.input_shape[1:])
        if max(np.prod(shape, dtype=object), np.prod(engine.output_shape[1:], dtype=object) * batch) > LARGEST_RUN:
            return
        x = rng.standard_normal(shape).astype(engine.dtype)
        before = x.copy()
        out, whole = _guarded((batch, *engine.output_shape[1:]), engine.dtype)
        y = engine(x, out=out)
        assert y is out, "the result is not where it was asked for"
        assert whole(), "it wrote beside the result"
        assert np.array_equal(x, before, equal_nan=True), "it wrote to its input"


def _save_graph(path: Path) -> None:
    engine = fs.compile(onnx_model(), tune=False)
    engine.prepare(tune=True)
    engine.save(path)


def _run_graph(engine: Any) -> None:
    sizes = [np.prod(shape, dtype=object) for shape in (*engine.input_shapes.values(), *engine._shapes.values())]
    if max(sizes, default=0) > LARGEST_RUN:
        return
    try:
        outputs = engine.run(engine.random_inputs())
    except (ValueError, UnsupportedOperatorError) as error:  # numbers in an input that an operator does not take
        if engine.output_shapes is not None and "cannot be computed" not in str(error):
            raise
        return
    if engine.output_shapes is not None:
        assert [y.shape for y in outputs] == [engine.output_shapes[name] for name in engine.output_names]


def _save_checkpoint(path: Path) -> None:
    _training(path, resume=False, epochs=1)


def _training(path: Path, *, resume: bool, epochs: int) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((12, 10)).astype(np.float32), rng.integers(0, 3, 12)
    trained = nn.Sequential(
        nn.SparseLinear(10, 8, sparsity=0.5, activation="relu", rng=rng), nn.BatchNorm1d(8), nn.Dropout(0.1, rng=rng),
        nn.Linear(8, 3, rng=rng),
    )  # fmt: skip
    fs.training.fit(
        trained, data, epochs=epochs, batch_size=6, optimizer=fs.training.Adam(trained.parameters(), 0.01),
        sparsity=fs.sparsity.RigL(trained, every=1, steps=8), checkpoint=path, resume=resume,
        progress=False, rng=1,
    )  # fmt: skip


def _load_checkpoint(path: Path) -> None:
    try:
        _training(path, resume=True, epochs=2)
    except ValueError as error:
        if str(error).endswith("holds NaN, expected numbers"):  # a whole file, of weights that no score can order
            return
        if type(error) is not ValueError or str(path) not in str(error):
            raise
        raise fs.FileFormatError(str(error)) from None  # a whole file, of another model or training
    except FloatingPointError:  # parameters that are infinite, or will be
        return


def _compile(path: Path) -> Any:
    """An engine of a model of another library."""
    try:
        return fs.compile(path, tune=False)
    except UnsupportedOperatorError as error:
        raise fs.FileFormatError(str(error)) from error
    except ValueError as error:
        if type(error) is not ValueError or "give input_shape" not in str(error):
            raise
        raise fs.FileFormatError(str(error)) from error


def _run_weights(weights: Any) -> None:
    for name, array in weights.items():
        assert isinstance(name, str)
        assert isinstance(array, np.ndarray | fs.CSR), type(array)
        if isinstance(array, fs.CSR) and max(array.shape) < LARGEST_RUN:
            fs.CSR(array.indptr, array.indices, array.data, array.shape)  # checked once more
            array @ np.ones(array.shape[1], array.dtype)


@dataclass(frozen=True)
class Format:
    """A kind of file: how one is written, how it is read, and how to run what was read."""

    kind: str
    save: Callable[[Path], None]
    load: Callable[[Path], Any]
    run: Callable[[Any], None]
    changed: Callable[[bytes, np.random.Generator], bytes] | None = None  # of another library: its contents changed


FORMATS = {
    "model": Format("model", _save_model, fs.load, _run_model),
    "engine": Format("engine", _save_engine, fs.load_engine, _run_engine),
    "graph": Format("engine", _save_graph, fs.load_engine, _run_graph),
    "checkpoint": Format("checkpoint", _save_checkpoint, _load_checkpoint, lambda loaded: None),
    "safetensors": Format(
        "weights", foreign_files.save_safetensors, fs.load_weights, _run_weights, foreign_files.changed_safetensors
    ),
    "torch": Format("weights", foreign_files.save_torch, fs.load_weights, _run_weights, foreign_files.changed_torch),
    "onnx": Format("model", foreign_files.save_onnx, _compile, _run_graph, foreign_files.changed_onnx),
    "tflite": Format("model", foreign_files.save_tflite, _compile, _run_graph, foreign_files.changed_words),
}


# ---------------------------------------------------------------- workers


class Fuzz:
    """Files of one format, damaged one by one; case `number` is the same whenever it is made."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.format, self.seed = FORMATS[name], seed
        self.target = folder / f"fuzzed.{name}"
        original = folder / f"{name}.original"
        self.format.save(original)
        self.data = original.read_bytes()
        if self.format.changed is not None:
            return
        self.arrays, metadata = files.read(original, self.format.kind)
        self.metadata = {key: value for key, value in metadata.items() if key not in ("format", "format_version")}

    def write(self, number: int) -> None:
        """Write the file of a case."""
        rng = np.random.default_rng([self.seed, number])
        if self.format.changed is not None:
            self.target.write_bytes((self.format.changed if number % 4 else damaged)(self.data, rng))
        elif number % 8 == 0:
            self.target.write_bytes(damaged(self.data, rng))
        elif number % 8 == 4:
            self.target.write_bytes(with_other_header(self.data, rng))
        elif number % 4 == 1 and "program" in self.metadata:
            files.write(self.target, self.format.kind, *rewired(self.arrays, self.metadata, rng))
        else:
            files.write(self.target, self.format.kind, *hostile(self.arrays, self.metadata, rng))

    def outcome(self, number: int, loading: Any = contextlib.nullcontext, running: Any = contextlib.nullcontext) -> str:
        """ "refused" or "ran"; anything but FileFormatError passes through."""
        self.write(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with loading():
                    loaded = self.format.load(self.target)
            except fs.FileFormatError:
                return "refused"
            if number % 4 == 0 and self.format.changed is None:  # only damage to nothing, such as white space, may pass
                arrays, _ = files.read(self.target, self.format.kind)
                if self.format.kind != "checkpoint":  # which the training that went on has written anew
                    same = (np.array_equal(arrays[name], array) for name, array in self.arrays.items())
                    assert all(same), "other numbers were loaded"
            with running():
                self.format.run(loaded)
        return "ran"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


def limit_memory(extra: int) -> None:
    """Let this process have at most `extra` bytes of address space more than now."""
    limit = _address_space() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextlib.contextmanager
def _limited(extra: int) -> Iterator[None]:
    """Let what happens inside take at most `extra` bytes of address space more than there is."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _work(name: str, first: int, last: int, seed: int, progress: Path) -> int:
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        cases = Fuzz(name, seed, Path(folder))
        work(
            first, last, progress,
            lambda number: cases.outcome(number, lambda: _limited(LOADING), lambda: _limited(RUNNING)),
        )  # fmt: skip
    return 0


def _fast_folder() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def supervise(name: str, first: int, last: int, seed: int, say: Callable[[str], None] = print) -> dict[str, int]:
    """Run cases of a format in worker processes; counts of the outcomes, "failed" among them."""
    return guarded.supervise(["-m", "bench.fuzz_files", "--format", name, "--seed", str(seed)], first, last, name, say)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz_files", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="files of each format (default 10000)")
    parser.add_argument("--format", choices=FORMATS, action="append", help="one format, may be repeated (default all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case of one format, in this process")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.format or list(FORMATS)
    if arguments.worker:
        first, last, progress = arguments.worker
        return _work(names[0], int(first), int(last), arguments.seed, Path(progress))
    if arguments.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(Fuzz(names[0], arguments.seed, Path(folder)).outcome(arguments.only))
        return 0
    failed = 0
    for name in names:
        counts = supervise(name, 0, arguments.count, arguments.seed)
        failed += counts.get("failed", 0)
        print(f"{name}: {json.dumps(counts, sort_keys=True)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
