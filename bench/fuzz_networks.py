"""Random networks: compiled engines against exact sums with an error bound, ONNX engines against onnxruntime.

    python -m bench.fuzz_networks --count 10000 --seed 1
    python -m bench.fuzz_networks --replay '{"kind": "layers", "seed": [1, 0, 7], "steps": ...}'

Contracts R1, R3, R6, R7 and R8, of networks of layers (`bench.random_networks`), of the same as ONNX models, and of
ONNX graphs of any operators (`bench.random_graphs`). Every network runs in every layout that can run it, cut in random
ways, on one and two workers, under random heuristics, with NaN in all undefined memory (`tests.engine.poison`);
all of these must give the same bits, within the bound of the exact result. What fails is made smaller, as far as it
still fails, and printed so that it can be replayed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import fastsparse as fs
from bench.baselines import onnx_session
from bench.draws import Case, shrunk
from bench.engine_uses import check_use
from bench.random_networks import MARGIN, Network, random_network
from fastsparse import nn
from fastsparse.engine import choosing, split
from fastsparse.engine.engine import Engine
from fastsparse.engine.lowering import batch_blocked, padded, spatial_tiles
from fastsparse.engine.program import Conv, Program
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.workspace import Workspace
from fastsparse.onnx.engine import compile_onnx
from fastsparse.onnx.estimates import KERNELS_FIRST
from fastsparse.onnx.lowering import Region
from fastsparse.onnx.partition import Cut
from fastsparse.ops.target import target_for, tuned
from tests.checking import SETTINGS
from tests.engine.networks import exact
from tests.engine.poison import poisoned

Array = NDArray[Any]
Rng = np.random.Generator


def check_case(case: Case, rng: Rng, half: bool) -> None:
    """Check the layers that a case stands for."""
    network = random_network(case)
    check_layers(network, rng, half)
    drops = any(isinstance(layer, nn.Dropout) for _, layer in network.model.named_modules())
    if rng.random() < 0.05 and network.model.parameters() and not drops:
        _check_gradient(random_network(case, "float64"), rng)


def check_layers(network: Network, rng: Rng, half: bool = False) -> None:
    """Check a network of fastsparse's layers.

    Parameters
    ----------
    half : vectors have half the length that this CPU's have

    Raises
    ------
    AssertionError
        When an engine gives wrong numbers.
    """
    model, x = network.model, network.inputs()
    want, bound = exact(model, x, np.dtype(network.dtype))
    with np.errstate(all="ignore"):
        _assert_within(model(x), want, bound, "the eager model")
    engine = fs.compile(model, [one.shape for one in x] if isinstance(x, tuple) else x.shape, tune=False)
    program, first = engine._program, None
    for label, settings, make in _schedules(program, network.batch, rng, half):
        with tuned(**SETTINGS[settings]) if settings else contextlib.nullcontext():
            y = _run(make(), engine._checked(x), want.shape, engine.dtype)
        label = f"{label} with {settings or 'usual choices'}"
        if first is None:
            _assert_within(y, want, bound, label)
            first = label, y
        elif y.tobytes() != first[1].tobytes():
            _assert_within(y, want, bound, label)
            raise AssertionError(f"{label}: other bits than {first[0]}")
    if rng.random() < 0.3:
        _check_form(model, engine, _in_another_form(x, rng))
    batch = min(int(rng.choice([1, 2, 5, 8, 16, 17, 33])), max(1, 2**20 // math.prod(network.shapes[0])))
    more = network.inputs(batch)
    if rng.random() < 0.3:
        with fs.threads(int(rng.integers(1, 3))):
            y = engine(more)
        _assert_within(y, *exact(model, more, np.dtype(network.dtype)), f"a batch of {batch}")
    if rng.random() < 0.3:
        check_use(model, engine, more if rng.random() < 0.5 else x, rng)
    if rng.random() < 0.1:
        with tempfile.TemporaryDirectory() as folder:
            _check_files(model, engine, x, want, bound, os.path.join(folder, "file"))


def _check_gradient(network: Network, rng: Rng) -> None:
    """The derivative along a random direction, of inputs and parameters, by backward and by differences (R6)."""
    model, x = network.model.train(), network.inputs(min(network.batch, 3) + 2)
    xs = list(x) if isinstance(x, tuple) else [x]

    def forward(step: float) -> Array:
        for parameter, value, d in zip(model.parameters(), values, directions, strict=True):
            parameter.value = value + step * d
        moved = [one + step * d if one.dtype.kind == "f" else one for one, d in zip(xs, ways, strict=True)]
        y: Array = model.train()(tuple(moved) if isinstance(x, tuple) else moved[0])
        return y

    # Away from zeros, where activations have kinks.
    values = [parameter.value + 0.1 * rng.standard_normal(parameter.value.shape) for parameter in model.parameters()]
    directions, ways = ([rng.standard_normal(a.shape) for a in arrays] for arrays in (values, xs))
    dy = rng.standard_normal(forward(0.0).shape)
    model.train()
    forward(0.0)
    found = model.backward(dy)
    inner = [parameter.grad for parameter in model.parameters()]
    ends = zip([*inner, *(found if isinstance(found, tuple) else [found])], [*directions, *ways], strict=True)
    want = sum(float(np.vdot(np.asarray(grad), d)) for grad, d in ends if grad is not None)
    size, off = float(abs(dy * forward(0.0)).sum()), np.inf
    for step in (1e-5, 1e-6, 1e-7, 3e-8):  # of which some cross a kink
        slope = float(((forward(step) - forward(-step)) * dy).sum()) / (2 * step)
        off = min(off, abs(slope - want) / max(1e-6, abs(want), abs(slope), 1e-3 * size))
    if not off < 1e-4:
        raise AssertionError(f"the gradient is off by {off:.1e} along a direction")


def _check_files(model: Any, engine: Engine, x: Any, want: Array, bound: Array, path: str) -> None:
    """An engine that was saved, and ONNX files of the model and of the engine, as onnxruntime runs them."""
    engine.save(path)
    if fs.load_engine(path)(x).tobytes() != engine(x).tobytes():
        raise AssertionError("a loaded engine gives other numbers than the one that was saved")
    if find_spec("onnxruntime") is None or engine.dtype != np.float32:  # which has few operators in float64
        return
    arrays = x if isinstance(x, tuple) else (x,)
    sources = ((model, "the model"), (engine, "the engine"))
    for source, label in sources[len(arrays) > 1 :]:  # models are written with one input
        try:
            fs.to_onnx(source, path)
        except fs.UnsupportedOperatorError:
            continue
        session = onnx_session(path, 1)
        if any(len(given.shape or one.shape) != one.ndim for given, one in zip(session.get_inputs(), arrays)):
            continue  # models that begin with a linear layer are written for one row a sample
        feeds = {given.name: one for given, one in zip(session.get_inputs(), arrays, strict=True)}
        (y,) = session.run(None, feeds)
        _assert_within(y, want, 4 * bound + 1e-5 * abs(want).max(initial=1e-3), f"the ONNX file of {label}")


def _check_form(model: Any, engine: Engine, form: Any) -> None:
    """Check results of an input in any type and place in memory."""
    same, told = _in_form(form, engine.dtype), f"for {_told(form)}"
    y, want = engine(form), engine(same)
    if y.dtype != want.dtype or y.tobytes() != want.tobytes():
        raise AssertionError(f"the engine: other bits {told} than for {_told(same)}")
    with np.errstate(all="ignore"):
        y = model(form)
    if y.dtype != engine.dtype and model.parameters():
        raise AssertionError(f"the eager model: {y.dtype} {told}")
    # Layers without parameters, in front of all others, compute in float32 unless their input is float64.
    wide = all(one.dtype.str[1:] == "f8" for one in (form if isinstance(form, tuple) else (form,)))
    _assert_within(y, *exact(model, same, engine.dtype if wide else np.dtype("f4")), f"the eager model {told}")


def _in_another_form(x: Any, rng: Rng) -> Any:
    """About the same numbers in another type, byte order, or place in memory."""
    if isinstance(x, tuple):
        return tuple(_in_another_form(one, rng) for one in x)
    if x.dtype.kind == "f":
        kind = rng.choice(["f4", "f8", "f2", "i8", "i4", "u1", "?", ">f4", ">f8"])
        x = (abs(x).round() if kind in ("u1", "?") else x.round() if kind[0] == "i" else x).astype(kind)
    form = rng.integers(6)
    if form == 0:
        x = np.asfortranarray(x)
    elif form == 1:
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif form == 2:
        x = x[::-1].copy()[::-1]
    elif form == 3:
        held = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
        held[...] = x
        x = held
    elif form == 4:
        x = x.copy()
        x.flags.writeable = False
    return x


def _in_form(x: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(x, tuple):
        return tuple(_in_form(one, dtype) for one in x)
    return np.array(x, dtype if x.dtype.kind in "fb" or dtype.kind == x.dtype.kind else x.dtype, order="C")


def _told(x: Any) -> str:
    return ", ".join(f"{one.dtype.str} {one.shape}, strides {one.strides}" for one in (x if type(x) is tuple else (x,)))


def check_onnx(case: Case, rng: Rng, half: bool) -> None:
    """Check a network as an ONNX model against onnxruntime, or where that is missing or fails, ONNX's own evaluator.

    The kernels run whatever they can, but for nodes that are the library's by lot; each of their programs takes one of
    the choices that tuning has.

    Raises
    ------
    AssertionError
        When the engine gives wrong numbers.
    """
    from bench.random_graphs import exported, with_odd_names

    network = random_network(case)
    model = exported(network, rng)
    if model is None:
        return
    names, feeds = [value.name for value in model.graph.input], []
    for batch in (network.batch, int(rng.choice([1, 2, 3, 8, 17]))):
        x = network.inputs(batch)
        feeds.append(dict(zip(names, x if isinstance(x, tuple) else (x,), strict=True)))
    # onnxruntime refuses names that stand twice.
    _check_model(with_odd_names(model) if rng.random() < 0.3 else model, model, feeds, rng)


def check_graph(case: Case, rng: Rng, half: bool) -> None:
    """Check a random ONNX graph likewise, with batches, and images, that it was not compiled for."""
    from bench.random_graphs import Builder

    made = Builder(case)
    draws, feeds = made.first.numbers, []
    for batch in (1, int(draws.integers(1, 20))):
        more = int(draws.integers(0, 4)) if made.open and batch > 1 else 0
        shapes = {name: (batch, shape[0], *(n + more for n in shape[1:])) for name, shape in made.shapes.items()}
        feeds.append({name: draws.standard_normal(shape).astype(made.dtype) for name, shape in shapes.items()})
    _check_model(made.model, made.model, feeds, rng)


def _check_model(model: Any, plain: Any, feeds: list[dict[str, Array]], rng: Rng) -> None:
    """Engines of a model give what onnxruntime makes of `plain` in float32, for each of the inputs."""
    from bench.random_graphs import as_float32

    plain = as_float32(plain)

    def any_choice(program: Program, batch: int, workers: int, *_: Any) -> choosing.Choice:
        offered = choosing.choices(program, batch, workers, True)
        return offered[int(rng.integers(len(offered)))]

    share, regions = rng.choice([0, 0, 0.1, 0.3]), Cut.regions

    def any_regions(cut: Cut, excluded: set[int]) -> list[Region]:
        return regions(cut, excluded | {id(node) for node in cut.nodes if rng.random() < share})

    shapes = {name: x.shape for name, x in feeds[0].items()}
    in_its_type = plain.graph.input[0].type.tensor_type.elem_type == model.graph.input[0].type.tensor_type.elem_type
    asked = feeds if in_its_type else [{name: x.astype(np.float32) for name, x in given.items()} for given in feeds]
    wanted = [_onnxruntime(plain, given) for given in asked]
    own = wanted if in_its_type else [_onnxruntime(model, given) for given in feeds]
    choices = mock.patch.object(choosing, "chosen", any_choice), mock.patch.object(Cut, "regions", any_regions)
    found: list[list[Array]] = []
    try:
        with poisoned(), choices[0], choices[1]:
            engine = compile_onnx(model, shapes, threads=int(rng.integers(1, 3)), tune=False, costs=KERNELS_FIRST)
            for given in feeds:
                first = engine.run(given)
                found.append(engine.run(given))  # at fixed places
                _assert_same(found[-1], first, "the second call")
            if rng.random() < 0.15:
                _check_given_memory(engine, given, found[-1])
        if rng.random() < 0.1:
            _check_two_threads(engine, feeds, found)
        if not share and rng.random() < 0.1:
            _assert_same(pickle.loads(pickle.dumps(engine)).run(feeds[-1]), found[-1], "a loaded engine")
    except (ValueError, NotImplementedError):
        if None in own and find_spec("onnxruntime") is not None:
            return  # onnxruntime refuses it as well, which runs parts of it
        raise
    tolerance = 2e-2 if found[0][0].dtype == np.float16 else 1e-4  # of the largest output
    for given, one, *others in zip(asked, found, wanted, own, strict=True):
        _check_outputs(plain, given, one, others, tolerance)


def _check_given_memory(engine: Any, feeds: dict[str, Array], want: list[Array]) -> None:
    """Results in arrays of the caller's, between bytes that must stay as they are."""
    if not all(isinstance(y, np.ndarray) and y.dtype.kind in "fiub" for y in want):
        return
    held = [np.full(y.nbytes + 2 * MARGIN, 0x55, np.uint8) for y in want]
    given = [h[MARGIN : MARGIN + y.nbytes].view(y.dtype).reshape(y.shape) for h, y in zip(held, want, strict=True)]
    _assert_same(engine.run(feeds, out=given), want, "a call with out")
    _assert_same(given, want, "what a call with out wrote")
    around = np.concatenate([part for h in held for part in (h[:MARGIN], h[-MARGIN:])])
    if not (around == 0x55).all():
        raise AssertionError("bytes in front of or behind the results were written")


def _check_two_threads(engine: Any, feeds: list[dict[str, Array]], found: list[list[Array]]) -> None:
    def calls(number: int) -> None:
        for _ in range(3):
            _assert_same(engine.run(feeds[number]), found[number], "beside another thread")

    with ThreadPoolExecutor(len(feeds)) as pool:
        list(pool.map(calls, range(len(feeds))))


def _assert_same(y: list[Array], want: list[Array], label: str) -> None:
    if any(a.tobytes() != b.tobytes() or a.shape != b.shape for a, b in zip(y, want, strict=True)):
        raise AssertionError(f"{label} gives other bits")


def _check_outputs(
    model: Any, feeds: dict[str, Array], found: list[Array], wanted: list[list[Array] | None], tolerance: float
) -> None:
    """`wanted` are results of onnxruntime, None where it refused; others are asked where none of them is near."""
    judged = [outputs for outputs in wanted if outputs is not None]
    if any(all(_near(y, want, tolerance) for y, want in zip(found, outputs, strict=True)) for outputs in judged):
        return
    from onnx.reference import ReferenceEvaluator

    unoptimised = _onnxruntime(model, feeds, optimised=False) if judged else None
    judged += [] if unoptimised is None else [unoptimised]
    with contextlib.suppress(Exception), np.errstate(all="ignore"):  # onnxruntime errs, too; two against one
        judged.append(ReferenceEvaluator(model).run(None, feeds))
    moved: list[float] | None = None
    for i, y in enumerate(found if judged else ()):
        judges = [outputs[i] for outputs in judged]
        if any(_near(y, judge, tolerance) for judge in judges):
            continue
        moved = _moved(model, feeds, found) if moved is None else moved
        if any(y.shape == judge.shape and (abs(y - judge) <= 8 * moved[i]).all() for judge in judges):
            continue  # sums that cancel
        judge = judges[0]
        wrong = (
            np.argwhere(~(abs(y - judge) <= _limit(judge, tolerance))) if y.shape == judge.shape else np.empty((0, 0))
        )
        what = f"{y.shape} for {judge.shape}, {len(wrong)} of {y.size} wrong, {wrong[:2].tolist()}"
        raise AssertionError(f"output {i} of the ONNX model: {what}")


def _moved(model: Any, feeds: dict[str, Array], found: list[Array], trials: int = 8) -> list[float]:
    """How far each output moves when input and weights change by a few units in the last place."""
    from onnx import numpy_helper

    rng, runs = np.random.default_rng(0), []
    for trial in range(trials + 1):
        moved = type(model)()
        moved.CopyFrom(model)
        for i, constant in enumerate(model.graph.initializer):
            array = numpy_helper.to_array(constant)
            if trial and array.dtype.kind == "f":
                moved.graph.initializer[i].CopyFrom(numpy_helper.from_array(_rounded(array, rng), constant.name))
        runs.append(_onnxruntime(moved, {n: _rounded(x, rng) if trial else x for n, x in feeds.items()}))
    if None in runs:
        return [0.0] * len(found)
    first, *others = runs
    return [
        max(float(abs(y[i] - first[i]).max(initial=0)) if y[i].shape == first[i].shape else 0.0 for y in others)
        for i in range(len(first))
    ]


def _rounded(array: Array, rng: Rng) -> Array:
    steps = rng.integers(-4, 5, array.shape)
    return np.asarray(array * (1 + steps * np.finfo(array.dtype).eps), array.dtype)


def _limit(want: Array, tolerance: float) -> float:
    """Of the difference of two results that are both right."""
    return tolerance * float(abs(want[np.isfinite(want)]).max(initial=1e-3))


def _near(y: Array, want: Array, tolerance: float) -> bool:
    if y.shape != want.shape:
        return False
    with np.errstate(invalid="ignore"):
        same = (y == want) | (np.isnan(y) & np.isnan(want))
        return bool(((abs(y - want) <= _limit(want, tolerance)) | same).all())


def _onnxruntime(model: Any, feeds: dict[str, Array], optimised: bool = True) -> list[Array] | None:
    fixed = type(model)()  # without inputs that stand for weights: onnxruntime 1.23 dies of such in float16
    fixed.CopyFrom(model)
    del fixed.graph.input[:]
    fixed.graph.input.extend(value for value in model.graph.input if value.name in feeds)
    try:
        found: list[Array] = onnx_session(fixed.SerializeToString(), 1, optimised).run(None, feeds)
    except Exception:
        return None
    return found


# ---------------------------------------------------------------- all ways to run a program


def _schedules(program: Program, batch: int, rng: Rng, half: bool) -> Iterator[tuple[str, str, Callable[[], Schedule]]]:
    """What to call it, settings, and what makes the schedule: the usual one, and one of every layout."""
    convolves = any(isinstance(node.operator, Conv) for node in program.nodes)
    layouts = [("padded", padded.schedule), *([("spatial tiles", spatial_tiles.schedule)] if convolves else [])]
    layouts += [("batch-blocked", batch_blocked.schedule)] if batch > 1 and not program.row_wise else []
    usual = choosing.choices(program, batch, 1, False)[0]
    if not half:
        yield f"{usual}", "", lambda: choosing.scheduled(program, batch, 1, usual)
    for name, make in layouts:
        workers, settings = int(rng.integers(1, 3)), ""
        target = target_for(program.dtype, workers)
        width = target.lanes // (1 + half)
        blocked = name == "batch-blocked"
        cut = _cut(rng, -(-batch // width) if blocked else batch, not blocked, workers)
        if rng.random() < 0.4:
            settings = list(SETTINGS)[int(rng.integers(len(SETTINGS)))]
        elif workers > 1:
            settings = "parallel"
        expanded, smallest = int(rng.choice([0, 2000, 2**40])), int(rng.choice([1, 7]))
        label = f"{name}, {cut}, {workers} workers, expanded_bytes={expanded}, group_positions={smallest}"

        def scheduled(
            workers: int = workers, width: int = width, cut: split.Split = cut, make: Any = make,
            expanded: int = expanded, smallest: int = smallest,
        ) -> Schedule:  # fmt: skip
            """Under the heuristics of the block around it."""
            here = target_for(program.dtype, workers)
            h = replace(here.heuristics, expanded_bytes=expanded, group_positions=smallest, group_overhang=9.0)
            return make(program, batch, replace(here, lanes=width, heuristics=h), cut)  # type: ignore[no-any-return]

        yield label, settings, scheduled


def _cut(rng: Rng, count: int, equal: bool, workers: int) -> split.Split:
    """Any cut of so many images or groups; of images into equal tasks."""
    outer = int(rng.choice([n for n in range(1, count + 1) if not equal or count % n == 0]))
    inner = int(rng.choice([n for n in range(1, outer + 1) if outer % n == 0]))
    return split.Split(bool(rng.integers(2)), outer, inner)


def _run(schedule: Schedule, x: list[Array], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The result, written between numbers that must stay as they are."""
    count = math.prod(shape)
    around = np.full(count + 2 * MARGIN, np.nan, dtype)
    y = around[MARGIN : MARGIN + count].reshape(shape)
    with poisoned():
        Workspace(schedule).run(x, y)
    if not np.isnan(np.concatenate([around[:MARGIN], around[MARGIN + count :]])).all():
        raise AssertionError("numbers in front of or behind the result were written")
    return y


def _assert_within(y: Array, want: Array, bound: Array, label: str) -> None:
    if y.shape != want.shape:
        raise AssertionError(f"{label}: shape {y.shape}, expected {want.shape}")
    wrong = ~(abs(y - want) <= bound)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{label}: {wrong.sum()} of {y.size} wrong, first {at}: {y[at]} for {want[at]} +- {bound[at]}"
        )


# ---------------------------------------------------------------- many networks


CHECKS: dict[str, Callable[[Case, Rng, bool], None]] = {
    "layers": check_case, "onnx": check_onnx, "graphs": check_graph,
}  # fmt: skip


def new_case(kind: str, seed: int, number: int) -> Case:
    """Case `number` of a run."""
    return {"kind": kind, "seed": [seed, number, list(CHECKS).index(kind)]}


def failure(case: Case, half: bool = False, tries: int = 1) -> str:
    """What is wrong with a case, "" for nothing; cuts and settings are drawn anew in each try.

    half : vectors have half the length
    """
    for attempt in range(tries):
        rng = np.random.default_rng([*case["seed"], attempt])
        try:
            CHECKS[case["kind"]](case, rng, half)
        except AssertionError as error:
            return str(error) or "AssertionError"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 when a network was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz_networks", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="networks (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first network (default: 0)")
    parser.add_argument("--kind", choices=CHECKS, help="default: all, in turn")
    parser.add_argument("--large", action="store_true", help="batches of images of more than 256 KB alone")
    parser.add_argument("--half", action="store_true", help="vectors of half the length, as on a smaller CPU")
    parser.add_argument("--faults", type=int, default=10, help="stop after so many (default: 10)")
    parser.add_argument("--replay", metavar="JSON", help="run one network, as it was printed")
    given = parser.parse_args(arguments)
    kinds = (given.kind,) if given.kind else ("layers",) if given.large else tuple(CHECKS)
    if given.replay:
        what = failure(json.loads(given.replay), given.half, tries=20)
        print(what or "right")
        return int(bool(what))
    faults = 0
    pause = 2.0 if sys.stderr.isatty() else 60.0  # seconds between two lines of progress
    for number in tqdm(range(given.first, given.first + given.count), "networks", mininterval=pause, maxinterval=pause):
        case = new_case(kinds[number % len(kinds)], given.seed, number) | ({"large": True} if given.large else {})
        what = failure(case, given.half)
        if what:
            faults += 1
            small = shrunk(case, lambda other: failure(other, given.half, tries=3)) if "steps" in case else case
            tqdm.write(f"seed {given.seed}, network {number}, {case['kind']}: {what}")
            tqdm.write(f"  smaller: {failure(small, given.half, tries=3)}\n  {json.dumps(small)}")
            if faults >= given.faults:
                break
    print(f"{faults} of {number - given.first + 1} networks wrong")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
