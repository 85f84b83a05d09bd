"""The demo from end to end: train, save, load, compile, compare, race, report."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from threadpoolctl import threadpool_info, threadpool_limits

import fastsparse as fs
from fastsparse.demo import network, race
from fastsparse.demo.learning import Digits, Trained, load_digits, predictions, train
from fastsparse.demo.report import write_report
from fastsparse.demo.results import Mistakes, Results
from fastsparse.runtime.threads import usable_threads
from fastsparse_kernels import compiler

_SHOWN_VERSIONS = ("numba", "numpy", "scipy", "scikit-learn", "matplotlib")


def run(options: argparse.Namespace, started: float) -> Results:
    """Run the demo, progress on stderr, and write its report.

    Parameters
    ----------
    options : what the command line says, see `options.add_arguments`
    started : float
        When the command began, by time.perf_counter.

    Returns
    -------
    Results
    """
    threads = usable_threads(options.threads)
    with fs.threads(threads), threadpool_limits(threads):
        results = _results(options, threads, started)
    write_report(results, options.report)
    return results


def _results(options: argparse.Namespace, threads: int, started: float) -> Results:
    compiled = compiler.compile_seconds()
    digits = load_digits()
    sparse, dense = [], []
    for seed in range(options.seed, options.seed + options.seeds):
        sparse.append(train(digits, sparse=True, seed=seed, epochs=options.epochs))
        dense.append(train(digits, sparse=False, seed=seed, epochs=options.epochs))
    model = sparse[0].model
    _say("saving, loading, compiling")
    reloaded = _saved_and_loaded(model)
    test, largest = digits.test[0], max(race.BATCHES)
    engines = {batch: fs.compile(model, (batch, *test.shape[1:]), threads=threads) for batch in race.BATCHES}
    agreement = race.agreement(model, reloaded, engines[largest], test)
    _say("racing")
    speeds = {batch: race.race(engines[batch], test[:batch], threads) for batch in race.BATCHES}
    chunk, chunk_ratio = race.race_in_chunks(engines[largest], test[:largest])
    return Results(
        layers=network.layer_rows(model),
        sparse_accuracy=[trained.test_accuracy for trained in sparse],
        dense_accuracy=[trained.test_accuracy for trained in dense],
        sparse_curves=sparse[0].curves,
        dense_curves=dense[0].curves,
        sparse_train_seconds=[trained.seconds for trained in sparse],
        dense_train_seconds=[trained.seconds for trained in dense],
        compile_seconds=compiler.compile_seconds() - compiled,
        speeds=speeds,
        tuned_scipy_ratio=chunk_ratio,
        tuned_scipy_chunk=chunk,
        agreement=agreement,
        mistakes=_mistakes(sparse[0], digits),
        pattern=network.shown_pattern(model),
        pattern_name=network.SHOWN,
        train_images=len(digits.train[1]),
        validation_images=len(digits.validation[1]),
        test_images=len(digits.test[1]),
        epochs=options.epochs,
        seconds=time.perf_counter() - started,
        threads=threads,
        blas_threads=max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1),
        versions={"fastsparse": fs.__version__, **{name: metadata.version(name) for name in _SHOWN_VERSIONS}},
        machine=_machine(),
    )


def _saved_and_loaded(model: fs.nn.Sequential) -> fs.nn.Module:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "digits.safetensors"
        fs.save(model, path)
        return fs.load(path)


def _mistakes(trained: Trained, digits: Digits) -> Mistakes:
    images, labels = digits.test
    predicted = predictions(trained.model, images)
    wrong = predicted != labels
    return Mistakes(images[wrong, 0], labels[wrong], predicted[wrong])


def _machine() -> str:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        found = fs.show_config(file=nowhere)
    return f"{found['cpu']}, {found['cpus']} processors, {found['vector_bits']}-bit vectors"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
