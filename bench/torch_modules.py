"""fastsparse.torch against dense torch, with equal threads: ``python -m bench.torch_modules``.

Every workload is checked first: sparse and dense modules hold the same weights and must agree. Then they are timed in
interleaved rounds. Needs torch (a build for CPUs is enough), and transformers for the decoder and the encoder. Training
is also compared with the modules of SparseLab (``pip install sparselab``) and SparseProp (``pip install sparseprop``,
which compiles C++ and needs pybind11) where they are installed.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastsparse as fs
import fastsparse.torch as fst
from bench import machine
from fastsparse.text_table import text_table
from fastsparse.timing import PAUSE, interleaved, ratio

Row = tuple[str, str, str, str, str]
Calls = dict[str, Callable[[], object]]
HEADER = ("workload", "baseline", "ours ms", "baseline ms", "ratio")
STEPS = 0.15  # seconds of training steps in a row: what came between is no part of training
AGREE = 1e-4  # relative to the largest output


def race(name: str, calls: Calls, options: argparse.Namespace, unit: float = 1.0, block: float = 0.003) -> list[Row]:
    """Time "ours" against all others; `unit` divides the times (tokens of a call, for example).

    block : seconds of calls of one kind in a row
    """
    pause = PAUSE if options.threads > 1 else 0.0
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds = options.seconds * len(calls)
    times = interleaved(calls, rounds=(3, 15), seconds=seconds, pause=pause, block=block, clock=clock)
    ours = times.pop("ours")

    def milliseconds(seconds: list[float]) -> str:
        return f"{statistics.median(seconds) / unit * 1e3:.4g}"

    return [
        (name, other, milliseconds(ours), milliseconds(found), f"{ratio(found, ours):.2f}x")
        for other, found in times.items()
    ]


def agree(ours: Tensor, expected: Tensor) -> None:
    """Refuse to time what is wrong."""
    ours, expected = ours.detach(), expected.detach()
    worst = float((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not worst <= AGREE:
        raise SystemExit(f"outputs differ by {worst:.2g} of the largest, expected at most {AGREE}")


def pruned_pair(module: nn.Module, sparsity: float, example: Any, **keywords: Any) -> tuple[nn.Module, nn.Module, Any]:
    """The module made sparse, a dense twin with the same zeros, and the report."""
    report = fst.sparsify(module, sparsity, example_inputs=example, **keywords)
    return module, fst.densify(copy.deepcopy(module)), report


# ------------------------------------------------------------------------------------------------- other libraries


def _sparselab(linear: nn.Linear) -> nn.Module:
    import sparselab

    layer = sparselab.SparseLinear(linear.in_features, linear.out_features, linear.bias is not None)
    layer._csr = sparselab.layout.from_dense(linear.weight.detach())
    layer._values = nn.Parameter(torch.from_numpy(np.asarray(layer._csr.values)))  # as its constructor does
    layer.bias = linear.bias
    return layer


def _sparseprop(linear: nn.Linear) -> nn.Module:
    from sparseprop.modules.linear import SparseLinear

    return SparseLinear.from_dense(linear)


def of_others(dense: nn.Module) -> dict[str, nn.Module]:
    """The module with the layers of other libraries in the places of linear ones with zeros."""
    found: dict[str, nn.Module] = {}
    for library, make in (("sparselab", _sparselab), ("sparseprop", _sparseprop)):
        if importlib.util.find_spec(library) is None:
            continue
        found[f"{library} {importlib.metadata.version(library)}"] = _with_layers(copy.deepcopy(dense), make)
    return found


def _with_layers(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """The module, with what `make` makes in the places of its linear layers with zeros."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and torch.count_nonzero(child.weight) < 0.5 * child.weight.numel():
                setattr(parent, name, make(child))
    return module


class _Free(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor, layer: _FreeLayer) -> Tensor:
        ctx.layer = layer
        layer.grad = torch.zeros_like(x) if layer.grad is None else layer.grad
        layer.y = x.new_zeros(*x.shape[:-1], len(bias)) if layer.y is None else layer.y
        return layer.y.view_as(layer.y)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        layer = ctx.layer
        grad = layer.grad if ctx.needs_input_grad[0] else None
        return grad, torch.zeros_like(layer.values), torch.zeros_like(layer.bias), None


class _FreeLayer(nn.Module):
    """A linear layer with the parameters of a sparse one whose products take no time, and are wrong: what is left is
    the rest of the network and the optimizer."""

    y: Tensor | None = None
    grad: Tensor | None = None

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(int(torch.count_nonzero(like.weight))))
        self.bias = nn.Parameter(torch.zeros(like.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return _Free.apply(x, self.values, self.bias, self)


def with_free_layers(dense: nn.Module) -> nn.Module:
    """The module without the time of its linear layers with zeros: no library's layers can make it faster."""
    return _with_layers(copy.deepcopy(dense), _FreeLayer)


def training_step(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward pass, loss, backward pass, SGD with momentum."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x).flatten(0, -2), y).backward()
        optimizer.step()

    return run


# ------------------------------------------------------------------------------------------------- workloads


def call(options: argparse.Namespace) -> list[Row]:
    """The operator with next to no work, and what a dense layer of that size takes."""
    layer, x = fst.SparseLinear(8, 8, sparsity=0.9), torch.randn(1, 8)
    dense, arguments = layer.to_dense(), (layer.values, layer.bias, layer.indptr, layer.indices, 8, False)
    operator = torch.ops.fastsparse.linear.default
    with torch.no_grad():
        agree(layer(x), dense(x))
        rows = race("operator call", {"ours": lambda: operator(x, *arguments), "nn.Linear": lambda: dense(x)}, options)
        return rows + race("layer call", {"ours": lambda: layer(x), "nn.Linear": lambda: dense(x)}, options)


def mlp(options: argparse.Namespace) -> list[Row]:
    """A step of training, 3072-1024-1024-10, 90%, batch 128: forward, loss, backward, SGD with momentum.

    Prints what torch and the kernels leave of the step: the overhead of the bridge between them.
    """
    sizes = (3072, 1024, 1024, 10)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [fst.SparseLinear(before, after, sparsity=0.9), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    dense = fst.densify(copy.deepcopy(module))
    x, y = torch.randn(128, 3072), torch.randint(10, (128,))
    networks = {"ours": module, "torch dense": dense, **of_others(dense)}
    for other in networks.values():
        agree(other(x), dense(x))
    bare = [(m.matrix(), m.bias.detach().numpy(), m.in_features == 3072) for m in layers if hasattr(m, "values")]

    inputs = [torch.randn(128, w.shape[1]).numpy() for w, _, _ in bare]
    grads = [torch.randn(128, w.shape[0]).numpy() for w, _, _ in bare]

    def kernels() -> None:
        for (weight, bias, first), given, grad in zip(bare, inputs, grads):
            fresh = weight.with_data(weight.data)  # values are packed anew in each step
            fs.linear(given, fresh, bias)
            fs.linear_backward(grad, given, fresh, need_input=not first)

    steps: Calls = {name: training_step(network, x, y) for name, network in networks.items()}
    steps |= {"bare kernels": kernels, "all but the sparse layers": training_step(with_free_layers(dense), x, y)}
    rows = race("MLP step", steps, options, block=STEPS)
    taken = {baseline: float(milliseconds) for _, baseline, _, milliseconds, _ in rows}
    bare, rest = taken["bare kernels"], taken["all but the sparse layers"]
    print(f"bridge over the bare kernels: {(float(rows[0][2]) - rest - bare) / bare:+.0%}")
    return rows


class Attention(nn.Module):
    """A block of a small GPT: attention, then two linear layers."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(features),
            nn.Linear(features, 3 * features),
            nn.Linear(features, features),
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, tokens, features)."""
        q, k, v = (t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


def gpt(options: argparse.Namespace) -> list[Row]:
    """A step of training of a GPT of 40 million weights, whose two linear layers of each block are 90% sparse.

    The network of SparseLab's README (8 blocks of 640 features, 2560 hidden); a batch of 4 x 128 tokens. The last line
    is the bound for every library: the step without the time of the sparse layers.
    """
    blocks = [Attention(640, 2560) for _ in range(2 if options.quick else 8)]
    module = nn.Sequential(nn.Embedding(128, 640), *blocks, nn.LayerNorm(640), nn.Linear(640, 128))
    x = torch.randint(128, (4, 128))
    fst.sparsify(module, 0.9, filter_fn=lambda name, _: ".mlp." in name, measure=False)
    dense = fst.densify(copy.deepcopy(module))
    networks = {"ours": module, "torch dense": dense, **of_others(dense)}
    with torch.no_grad():
        for other in networks.values():
            agree(other(x), dense(x))
    networks["all but the sparse layers"] = with_free_layers(dense)
    steps: Calls = {name: training_step(network, x, x.flatten()) for name, network in networks.items()}
    return race(f"GPT step, {len(blocks)} blocks", steps, options, block=STEPS)


class Block(nn.Module):
    """A block of ResNet-18: He et al., Deep Residual Learning, CVPR 2016."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, channels, H, W)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 for images of 32 x 32."""
    blocks = [Block(a, b, s) for a, b, s in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))]
    again = [Block(c, c, 1) for c in (64, 128, 256, 512)]
    body = [block for pair in zip(blocks, again) for block in pair]
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).eval()


def resnet(options: argparse.Namespace) -> list[Row]:
    """ResNet-18 (CIFAR) pruned to 90%, in evaluation."""
    rows: list[Row] = []
    for batch in (1, 16):
        x = torch.randn(batch, 3, 32, 32)
        module, dense, report = pruned_pair(resnet18(), 0.9, x)
        print(report, "\n")
        with torch.no_grad():
            agree(module(x), dense(x))
            calls = {"ours": partial(module, x), "torch dense": partial(dense, x)}
            rows += race(f"ResNet-18 batch {batch}", calls, options)
    return rows


def decoder(options: argparse.Namespace) -> list[Row]:
    """A Llama-like decoder that generates 32 tokens after a prompt of 64, batch 1: milliseconds per token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers = 2 if options.quick else 8
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=16, vocab_size=4096,
        max_position_embeddings=256,
    )  # fmt: skip
    prompt = torch.randint(4096, (1, 64))
    tokens = 32

    def generate(model: Any) -> Callable[[], object]:
        keywords = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), **keywords)

    rows: list[Row] = []
    for sparsity in options.sparsities:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            chosen = {"filter_fn": lambda name, layer: name != "lm_head"}
            model, dense, report = pruned_pair(model, sparsity, {"input_ids": prompt[:, :1]}, **chosen)
            print(f"decoder {sparsity:.0%}: {len(report.replaced)} of {len(report.layers)} layers are sparse")
            agree(model(prompt).logits, dense(prompt).logits)
            half = copy.deepcopy(dense).to(torch.bfloat16)
            calls = {"ours": generate(model), "torch float32": generate(dense), "torch bfloat16": generate(half)}
            rows += race(f"decode {sparsity:.0%}, {layers} layers, a token", calls, options, unit=tokens)
        del model, dense, half, calls, report
        gc.collect()  # modules refer to each other, and three times these are more than 24 GB
    return rows


def encoder(options: argparse.Namespace) -> list[Row]:
    """A BERT-like encoder of four layers, 768 features, 128 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokens = torch.randint(1000, (1, 128))
    rows: list[Row] = []
    for sparsity in options.sparsities:
        model = BertModel(BertConfig(vocab_size=1000, num_hidden_layers=4)).eval()
        with torch.no_grad():
            model, dense, _ = pruned_pair(model, sparsity, {"input_ids": tokens})
            agree(model(tokens).last_hidden_state, dense(tokens).last_hidden_state)
            calls = {"ours": partial(model, tokens), "torch dense": partial(dense, tokens)}
            rows += race(f"encoder {sparsity:.0%}", calls, options)
    return rows


WORKLOADS = {f.__name__: f for f in (call, mlp, gpt, resnet, decoder, encoder)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.torch_modules", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=[], help=f"some of: {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="of fastsparse and of torch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="per call to time (default: %(default)s)")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    parser.add_argument("--cpu-time", action="store_true", help="where other programs run: of one thread")
    parser.add_argument("--quick", action="store_true", help="a decoder of two layers")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(WORKLOADS)}")
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    with fs.threads(options.threads):
        for name in options.workloads or WORKLOADS:
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002 - transformers' initialisation
            rows += WORKLOADS[name](options)
    print(f"torch {torch.__version__}, {options.threads} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}")
    if options.threads > 1:
        print(f"round trip of a cache line: {machine.round_trip() * 1e9:.0f} ns")
    if hasattr(os, "getloadavg"):
        print(f"load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    print(text_table(HEADER, rows, text=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
