"""
A server
========

A compiled network behind FastAPI, on this machine's loopback interface: clients send one sample each, all at the same
time, and the server computes what has arrived meanwhile as one batch. Sparse layers read their weights once per batch,
so that batches cost little more than single samples. Latency and throughput are measured for more and more clients,
with batching and without, and the server is stopped in the middle of its work: what it has accepted is answered.

Clients and server are threads of one Python process here, which shares two cores: nearly all of a request's time is
HTTP's, not the network's, and batching gains nothing until the network costs more than a request. Both are printed.

Needs the extra ``serve`` (fastapi, uvicorn, httpx). The network is 95% sparse with random weights, as only its time
matters; the clients share the processor with the server, so that the figures are those of both together.
"""

import asyncio
import os
import socket
import threading
import time
from contextlib import asynccontextmanager

import fastapi
import httpx
import matplotlib.pyplot as plt
import numpy as np
import uvicorn

import fastsparse as fs
from fastsparse import nn

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
WIDTH, REQUESTS, CLIENTS = (256, 20, (1, 8)) if SMALL else (1024, 20, (1, 4, 16, 64))
LARGEST = 32

rng = np.random.default_rng(SEED)
layers = [nn.SparseLinear(WIDTH, WIDTH, sparsity=0.95, activation="relu", rng=rng) for _ in range(4)]
engine = fs.compile(nn.Sequential(*layers, nn.Linear(WIDTH, 10, rng=rng)), (1, WIDTH), tune=False)
SIZES = [size for size in (1, 2, 4, 8, 16, 32) if size <= LARGEST]
for size in SIZES:
    engine(np.zeros((size, WIDTH), np.float32))  # all sizes of batches are planned before the first client comes


def compute(bodies):
    """Scores of the samples in some requests' bodies, in a batch of the next size: what is added is thrown away."""
    batch = np.zeros((next(size for size in SIZES if size >= len(bodies)), WIDTH), np.float32)
    batch[: len(bodies)] = np.frombuffer(b"".join(bodies), np.float32).reshape(-1, WIDTH)
    return [row.tolist() for row in engine(batch)[: len(bodies)]]


# %%
# The server
# ----------
# A request waits in a queue; one worker takes what is there, up to 32 samples, computes it in a thread, and hands out
# the rows. At the end of its life the server waits until the queue is empty.


def application(largest):
    queue = asyncio.Queue()

    async def work():
        while True:
            waiting = [await queue.get()]
            while len(waiting) < largest and not queue.empty():
                waiting.append(queue.get_nowait())
            try:
                answers = await asyncio.to_thread(compute, [body for body, _ in waiting])
            except Exception as error:
                answers = [error] * len(waiting)
            for (_, future), answer in zip(waiting, answers):
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result((answer, len(waiting)))
                queue.task_done()

    @asynccontextmanager
    async def life(_):
        worker = asyncio.create_task(work())
        yield
        await queue.join()
        worker.cancel()

    app = fastapi.FastAPI(lifespan=life)

    @app.post("/predict")
    async def predict(request: fastapi.Request):
        sample = await request.body()
        if len(sample) != 4 * WIDTH:
            raise fastapi.HTTPException(422, f"the body has {len(sample)} bytes, expected {WIDTH} float32 numbers")
        future = asyncio.get_running_loop().create_future()
        queue.put_nowait((sample, future))
        scores, batch = await future
        return {"scores": scores, "batch": batch}

    return app


print("the network alone:", engine.benchmark(seconds=0.1 if SMALL else 1))


class Server:
    """uvicorn in a thread, on a free port of the loopback interface."""

    def __init__(self, largest):
        # asyncio switches off Nagle's algorithm only where the protocol is given: 40 ms per answer otherwise.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(application(largest), log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def stop(self):
        self.server.should_exit = True  # no new connections; requests that have arrived are answered

    def __exit__(self, *_):
        self.stop()
        self.thread.join()
        self.socket.close()


# %%
# The clients
# -----------
# Each sends its next request when the last one is answered.

samples = rng.normal(size=(64, WIDTH)).astype(np.float32)
expected = np.concatenate([engine(part) for part in np.split(samples, 2)])


async def client(connection, url, number, latencies, batches):
    for _ in range(REQUESTS):
        began = time.perf_counter()
        answer = (await connection.post(f"{url}/predict", content=samples[number].tobytes())).json()
        latencies.append(1000 * (time.perf_counter() - began))
        batches.append(answer["batch"])
        np.testing.assert_allclose(answer["scores"], expected[number], rtol=1e-4, atol=1e-4)


async def load(url, clients):
    latencies, batches = [], []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as connection:
        began = time.perf_counter()
        await asyncio.gather(*(client(connection, url, n % 64, latencies, batches) for n in range(clients)))
        seconds = time.perf_counter() - began
    return np.percentile(latencies, [50, 95, 99]), len(latencies) / seconds, np.mean(batches)


measured = {}
for name, largest in (("batches", LARGEST), ("one by one", 1)):
    with Server(largest) as server:
        asyncio.run(load(server.url, 1))  # warm
        measured[name] = [asyncio.run(load(server.url, clients)) for clients in CLIENTS]
    for clients, (percentiles, throughput, batch) in zip(CLIENTS, measured[name]):
        p50, p95, p99 = percentiles
        print(
            f"{name:10} {clients:3} clients: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms, "
            f"{throughput:.0f} requests/s, {batch:.1f} samples a batch"
        )

# %%
# A graceful stop
# ---------------
# The server is told to stop while requests are under way: all that it has accepted come back with an answer.


async def stopped():
    with_answers = 0
    server = Server(LARGEST).__enter__()
    async with httpx.AsyncClient(timeout=60, trust_env=False) as connection:
        requests = [
            asyncio.create_task(connection.post(f"{server.url}/predict", content=sample.tobytes()))
            for sample in samples[:16]
        ]
        await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        for answer in await asyncio.gather(*requests, return_exceptions=True):
            with_answers += not isinstance(answer, Exception) and answer.status_code == 200
    await asyncio.to_thread(server.__exit__)
    return with_answers


answered = asyncio.run(stopped())
print(f"{answered} of 16 requests were answered although the server was stopped after the first")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, rows in measured.items():
    (line,) = left.plot(CLIENTS, [row[0][0] for row in rows], marker="o", label=f"{name}, p50")
    for column, style in ((1, "--"), (2, ":")):
        label = f"{name}, {('p50', 'p95', 'p99')[column]}"
        left.plot(CLIENTS, [row[0][column] for row in rows], style, color=line.get_color(), label=label)
    right.plot(CLIENTS, [row[1] for row in rows], marker="o", label=name)
left.set(xscale="log", yscale="log", xlabel="clients", ylabel="latency (ms)", title="Latency")
right.set(xscale="log", xlabel="clients", ylabel="requests/s", title="Throughput", ylim=(0, None))
for axes in (left, right):
    axes.set_xticks(CLIENTS, CLIENTS)
    axes.minorticks_off()
    axes.legend(fontsize=8)
plt.show()

# %%
result = {
    "claim": "a server that is told to stop answers what it has accepted",
    "measured": float(answered),
    "baseline": 16.0,
    "unit": "requests answered",
    "holds": answered == 16,
}
print(result)
