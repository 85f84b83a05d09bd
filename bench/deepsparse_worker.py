"""DeepSparse in an environment of its own, driven by `bench.baselines.networks` over pipes; it imports nothing of ours.

`PYTHON deepsparse_worker.py MODEL BATCH THREADS X.npy Y.npy` compiles the model, writes its output for the input, says
`ready`, and answers every line, a number of calls, with a JSON list of their seconds.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def main() -> None:
    model, batch, threads, source, target = sys.argv[1:]
    from deepsparse import Engine

    engine = Engine(model=model, batch_size=int(batch), num_cores=int(threads))
    x = [np.load(source)]
    np.save(target, engine.run(x)[0])
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            engine.run(x)
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
