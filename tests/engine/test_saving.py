"""Saved engines: the same bits, the choices of tuning, and no trust in what a file says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import files
from fastsparse.engine import loading, serial
from fastsparse.engine.choosing import Choice, choices, from_json, to_json
from fastsparse.engine.engine import Engine
from fastsparse.engine.from_model import program_of
from fastsparse.engine.split import Split
from tests.engine.networks import NETWORKS, network
from tests.engine.test_graphs import PROGRAMS


def saved(tmp_path: Path, name: str, dtype: str = "float32", batch: int = 17, **options: Any) -> tuple[Any, Path]:
    model, shape = network(name, dtype)
    engine = fs.compile(model, (batch, *shape), **options)
    engine.save(tmp_path / "engine.safetensors")
    return engine, tmp_path / "engine.safetensors"


@pytest.mark.R8
@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in NETWORKS for d in ("float32", "float64")][:-1])
def test_an_engine_comes_back_to_the_bit(name, dtype, tmp_path, rng):
    engine, path = saved(tmp_path, name, dtype, tune=False)
    again = fs.load_engine(path)
    assert (again.input_shape, again.output_shape, again.dtype) == (
        engine.input_shape, engine.output_shape, engine.dtype,
    )  # fmt: skip
    for batch in (1, 3, 17):
        x = rng.standard_normal((batch, *engine.input_shape[1:])).astype(engine.dtype)
        np.testing.assert_array_equal(again(x), engine(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_come_back_whole_before_passes_and_behind(name):
    model, shape = network(name)
    for program in (program_of(model, shape), fs.compile(model, (2, *shape))._program):
        _assert_round_trip(program)


@pytest.mark.R8
@pytest.mark.parametrize("name", PROGRAMS)
def test_graphs_come_back_whole(name):
    _assert_round_trip(PROGRAMS[name])


def _assert_round_trip(program):
    arrays: dict[str, Any] = {}
    plain = json.loads(json.dumps(serial.to_plain(program, arrays)))
    again = serial.from_plain(plain, arrays)
    arrays_again: dict[str, Any] = {}
    assert json.loads(json.dumps(serial.to_plain(again, arrays_again))) == plain
    assert list(arrays_again) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(arrays_again[name], array)


def test_what_tuning_chose_is_kept(tmp_path, monkeypatch):
    engine, path = saved(tmp_path, "demo", batch=40, threads=1)
    again = fs.load_engine(path)
    assert again._choices == engine._choices != {}
    monkeypatch.setattr("fastsparse.engine.choosing.fastest", lambda *_: pytest.fail("it measured"))
    again.prepare(40)
    engine.prepare(40, tune=True)  # measured before


def test_a_choice_of_a_file_that_is_contradicted_is_dropped(tmp_path, monkeypatch):
    engine, path = saved(tmp_path, "demo", batch=40, threads=1)
    first, other = choices(engine._program, 40, 1, True)[:2]
    compared = []

    def second(program, candidates, batch, workers):
        compared.append(len(candidates))
        return 1

    monkeypatch.setattr("fastsparse.engine.choosing.fastest", second)
    for choice, kept, measured in ((other, first, [2]), (first, first, [])):
        engine._choices[40, 1] = choice
        engine.save(path)
        again = fs.load_engine(path)
        compared.clear()
        for _ in range(2):
            again.prepare(40, tune=True)
            assert again._choices == {(40, 1): kept}
            assert compared == measured, "once, and against the estimate alone"


def test_a_choice_for_another_cpu_is_made_again_with_a_notice(tmp_path, monkeypatch):
    engine, path = saved(tmp_path, "demo", batch=40, threads=1)
    monkeypatch.setattr(loading, "lanes_of", lambda dtype: 3)
    with pytest.warns(UserWarning, match=r"tuned for .* lanes, 1 threads, and here are 3 lanes"):
        again = fs.load_engine(path)
    assert again._choices == {}
    again(np.zeros(engine.input_shape, np.float32))
    assert list(again._choices) == [(40, 1)]


def test_a_choice_for_other_threads_is_made_again_with_a_notice(tmp_path, monkeypatch):
    _, path = saved(tmp_path, "demo", batch=40)
    monkeypatch.setattr(loading, "usable_threads", lambda threads: 77)
    with pytest.warns(UserWarning, match="here are .* lanes, 77 threads: the first call measures anew"):
        fs.load_engine(path)


def test_choices_are_all_offered_once_and_travel():
    model, shape = network("convolutions")
    program = fs.compile(model, (2, *shape), tune=False)._program
    for batch in (1, 2, 16, 40):
        found = choices(program, batch, 2, True)
        assert len(set(found)) == len(found)
        assert choices(program, batch, 2, False) == found[:1]
        assert [from_json(json.loads(json.dumps(to_json(c)))) for c in found] == found
    assert {c.layout for c in choices(program, 40, 2, True)} == {"padded", "spatial tiles", "batch-blocked"}
    for bad in (None, [], ["padded", 1, 2, 3], ["padded", True, 2], ["padded", True, 2.5, 3]):
        with pytest.raises(ValueError, match="no choice"):
            from_json(bad)


def test_a_choice_that_is_not_offered_is_not_taken(tmp_path):
    model, shape = network("demo")
    engine = fs.compile(model, (40, *shape), threads=1, tune=False)
    engine._choices[40, 1] = Choice("padded", Split(True, 39, 7))
    engine.save(tmp_path / "e")
    x = np.ones((40, *shape), np.float32)
    np.testing.assert_array_equal(fs.load_engine(tmp_path / "e")(x), engine(x))


# ---------------------------------------------------------------- hostile files


def _set(*path: Any, to: Any) -> Any:
    def change(found: Any, arrays: Any) -> None:
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = to

    return change


def _array(name: str, change: Any) -> Any:
    def apply(found: Any, arrays: Any) -> None:
        node = next(n for n in found["program"]["nodes"] if n["operator"]["type"] == name[0])
        entry = node["operator"].get("weight", node["operator"])
        key = entry[name[1]]
        arrays[key] = change(arrays[key].copy())

    return apply


def _change(change: Any) -> Any:
    return lambda found, arrays: change(found)


def _operator(operator: dict[str, Any], twice: bool = False) -> Any:
    """Put a node behind the last one."""

    def change(found: Any, arrays: Any) -> None:
        program = found["program"]
        (last,), made = program["outputs"], len(program["shapes"])
        program["shapes"].append(program["shapes"][last])
        program["nodes"].append(
            {"name": "n", "inputs": [last, last] if twice else [last], "output": made, "operator": operator}
        )
        program["outputs"] = [made]

    return change


def _gather(**fields: Any) -> Any:
    """Put a gather, with one field wrong, behind the last node, which gives seven features."""
    right = {"type": "Gather", "index": "index", "blocks": 1, "shape": [7]}
    behind = _operator({**right, **{k: v for k, v in fields.items() if k != "index"}})

    def change(found: Any, arrays: Any) -> None:
        arrays["index"] = fields.get("index", np.arange(7)[::-1].copy())
        behind(found, arrays)

    return change


NODE = ("program", "nodes", 0)
CONV = (*NODE, "operator")
HOSTILE = {
    "no program": _set("program", to=None),
    "another type": _set(*CONV, "type", to="System"),
    "activation": _set(*CONV, "activation", to="exec"),
    "dtype": _set("program", "dtype", to="object"),
    "huge tensor": _set("program", "shapes", 0, to=[2**30, 2**20]),
    "negative size": _set("program", "shapes", 0, to=[-3, 8, 10]),
    "wrong shape": _set("program", "shapes", -1, to=[8]),
    "reads the future": _set(*NODE, "inputs", to=[3]),
    "writes its input": _set(*NODE, "output", to=0),
    "no such tensor": _set(*NODE, "output", to=99),
    "three inputs": _set(*NODE, "inputs", to=[0, 0, 0]),
    "residual of another shape": _set(*NODE, "inputs", to=[0, 0]),
    "output that is not there": _set("program", "outputs", to=[77]),
    "no outputs": _set("program", "outputs", to=[]),
    "output twice": _set("program", "outputs", to=[10, 10]),
    "input as second output": _set("program", "outputs", to=[10, 0]),
    "second input": _change(lambda f: (f["program"]["shapes"].append([8]), f["program"]["inputs"].append(11))),
    "output that is true": _set(*NODE, "output", to=True),
    "name that is none": _set(*NODE, "name", to=3),
    "nobody reads it": _change(lambda f: f["program"].update(outputs=[9])),
    "array that nobody reads": lambda found, arrays: arrays.update(another=np.ones(3)),
    "sum that passes would have fused": _operator({"type": "Add", "activation": None}, twice=True),
    "activation that passes would have fused": _operator({"type": "Activate", "name": "tanh"}),
    "join that passes would have made a product": _operator({"type": "Concat"}),
    "gather from outside": _gather(index=np.arange(1, 8)),
    "gather from in front": _gather(index=np.arange(-1, 6)),
    "gather of other numbers": _gather(index=np.arange(7.0)),
    "gather of other sizes": _gather(shape=[6]),
    "gather in blocks of other sizes": _gather(blocks=2),
    "gather in no blocks": _gather(blocks=0),
    "values of another type": _array(("Conv", "data"), lambda a: a.astype(np.float64)),
    "unsorted columns": _array(("Conv", "indices"), lambda a: a[::-1].copy()),
    "too many threads": _set("threads", to=1025),
    "lanes": _set("lanes", to="16"),
    "key of a choice": _set("choices", to=[[[40, 1, {}], ["padded", True, 1, 1]]]),
    "batch that is true": _set("batch", to=True),
    "huge batch": _set("batch", to=2**40),
    "huge padding": _set(*CONV, "geometry", "padding", to=[[2**40, 0], [0, 0]]),
    "huge kernel": _set(*CONV, "geometry", "kernel", to=[2**40, 3]),
    "stride of zero": _set(*CONV, "geometry", "stride", to=[0, 1]),
    "groups": _set(*CONV, "geometry", "groups", to=2),
    "missing array": _set(*CONV, "bias", to="program.999"),
    "array of another kind": _set(*CONV, "bias", to="program.0"),
    "columns out of range": _array(("Conv", "indices"), lambda a: a + 10**6),
    "row pointers": _array(("Conv", "indptr"), lambda a: a[::-1].copy()),
    "windows outside": _array(("Pool", "rows"), lambda a: a + 100),
    "windows before": _array(("Pool", "rows"), lambda a: a - 100),
    "threads": _set("threads", to=-1),
    "choice": _set("choices", to=[[[40, 1], ["padded", 1]]]),
    "choice for nothing": _set("choices", to=[[[0, 1], ["padded", True, 1, 1]]]),
    "batch": _set("batch", to=0),
    "lookups of another number": _set("program", "lookups", to=[None, None]),
    "rows of another number": _change(lambda f: f["program"]["nodes"][-1]["operator"].update(rows=2)),
    "attention to one tensor": _operator({"type": "Attention", "heads": 1, "causal": False}),
}


def test_a_gather_comes_back(tmp_path):
    engine, path = saved(tmp_path, "demo", tune=False)
    arrays, found = files.read(path, "engine")
    found = copy.deepcopy({k: v for k, v in found.items() if k not in ("format", "format_version")})
    _gather()(found, arrays)
    files.write(path, "engine", arrays, found)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 10)).astype("f")
    np.testing.assert_array_equal(fs.load_engine(path)(x), engine(x)[:, ::-1])


@pytest.mark.F2
@pytest.mark.F4
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    _, path = saved(tmp_path, "demo", tune=False)
    arrays, found = files.read(path, "engine")
    found = copy.deepcopy({k: v for k, v in found.items() if k not in ("format", "format_version")})
    HOSTILE[name](found, arrays)
    files.write(path, "engine", arrays, found)
    with pytest.raises(fs.FileFormatError, match=r"engine\.safetensors is damaged"):
        fs.load_engine(path)


@pytest.mark.F2
def test_other_files_are_refused(tmp_path):
    model, _ = network("demo")
    fs.save(model, tmp_path / "model")
    with pytest.raises(fs.FileFormatError, match="its format is 'fastsparse model', expected 'fastsparse engine'"):
        fs.load_engine(tmp_path / "model")
    with pytest.raises(OSError, match="nowhere"):
        fs.load_engine(tmp_path / "nowhere")


def test_engines_load_as_what_they_were(tmp_path):
    _, path = saved(tmp_path, "demo", threads=2, tune=False)
    again = fs.load_engine(path)
    assert isinstance(again, Engine)
    assert again._threads == 2
