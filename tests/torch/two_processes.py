"""One of several processes that train together: ``python two_processes.py DIRECTORY RANK RANKS``.

tests/torch/test_distributed.py starts them; what they find goes into DIRECTORY/RANK.json. Then they train until one is
killed.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastsparse.torch as fst
from fastsparse.sparsity import SET, RigL

STEPS, SAVED, BATCH = 8, 4, 6


def make() -> nn.Module:
    """The same on every rank."""
    torch.manual_seed(1)
    first, second = fst.SparseLinear(40, 30, sparsity=0.9), fst.SparseLinear(30, 10, sparsity=0.8)
    return nn.Sequential(first, nn.Tanh(), second).double()


def batch(step: int, rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of the step's samples."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2 * BATCH, 40, dtype=torch.float64, generator=generator)
    y = torch.randn(2 * BATCH, 10, dtype=torch.float64, generator=generator)
    return x[rank::ranks], y[rank::ranks]


def train(module: nn.Module, rank: int, ranks: int, saved: Path | None = None, resume: bool = False) -> list[float]:
    """Losses of all steps, or of those after the checkpoint."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    changes, first, losses = RigL(inner, every=2, drop_fraction=0.4), 1, []
    if resume and saved is not None:
        state = torch.load(saved, weights_only=False)
        inner.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        changes.load_state_dict(state["changes"])
        first = SAVED + 1
    for step in range(first, STEPS + 1):
        x, y = batch(step, rank, ranks)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(x), y)
        loss.backward()
        optimizer.step()
        changes.step(step)
        losses.append(loss.item())
        if saved is not None and not resume and step == SAVED:
            if rank == 0:
                states = {"module": inner, "optimizer": optimizer, "changes": changes}
                torch.save({name: part.state_dict() for name, part in states.items()}, saved)
            dist.barrier()
    return losses


def parallel(module: nn.Module) -> DistributedDataParallel:
    """Patterns are not sent at each step."""
    known = inspect.signature(DistributedDataParallel).parameters
    keyword = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(module, **{keyword: False})


def described(module: nn.Module) -> list[list[float]]:
    """Patterns and values."""
    return [tensor.tolist() for tensor in module.state_dict().values()]


def trained(directory: Path, rank: int, ranks: int) -> dict[str, object]:
    module, sent = make(), [0]
    together = parallel(module)

    def count(_, bucket):  # type: ignore[no-untyped-def] # torch refuses annotations that are text
        sent[0] += bucket.buffer().numel()
        return dist.all_reduce(bucket.buffer().div_(ranks), async_op=True).get_future().then(lambda f: f.value()[0])

    together.register_comm_hook(None, count)
    losses = train(together, rank, ranks, directory / "saved.pt")
    again = make()
    resumed = train(parallel(again), rank, ranks, directory / "saved.pt", True)
    found = {"losses": losses, "resumed": resumed, "state": described(module), "resumed state": described(again)}
    found["sent"] = sent[0] / STEPS
    try:
        SET(again, every=1, rng=rank).step(1)
    except RuntimeError as error:
        found["different"] = str(error)
    return found


def main() -> None:
    directory, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group(
        "gloo", f"file://{directory}/meeting", rank=rank, world_size=ranks, timeout=timedelta(seconds=30)
    )
    found = trained(directory, rank, ranks)
    module = parallel(make())
    for step in range(10**6):
        x, y = batch(step, rank, ranks)
        nn.functional.mse_loss(module(x), y).backward()
        if step == 2:
            (directory / f"{rank}.partial").write_text(json.dumps(found))
            (directory / f"{rank}.partial").rename(directory / f"{rank}.json")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
