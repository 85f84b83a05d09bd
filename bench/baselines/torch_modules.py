"""Modules of `fastsparse.torch` and the same networks with the layers of others, from the same weights.

Needs torch (a build for CPUs is enough), and transformers for the decoder and the encoder.
"""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastsparse as fs
import fastsparse.torch as fst
from bench.baselines import Call, training
from bench.workloads import TorchCall, TorchModule

TOKENS = 32  # that a decoder generates, after a prompt of twice as many
CLASSES = 10


class Attention(nn.Module):
    """A block of a small GPT: attention, then two linear layers."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(features), nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)
        layers = nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)
        self.mlp = nn.Sequential(nn.LayerNorm(features), *layers)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, tokens, features)."""
        q, k, v = (t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


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


def _mlp(case: TorchModule) -> tuple[nn.Module, Any]:
    """3072-1024-1024-10, as `bench.baselines.training` has it."""
    layers = nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, CLASSES)
    return nn.Sequential(*layers), torch.randn(case.batch, 3072)


def _gpt(case: TorchModule) -> tuple[nn.Module, Any]:
    """The network of SparseLab's README: 640 features, 2560 hidden, on samples of 128 tokens."""
    blocks = [Attention(640, 2560) for _ in range(case.layers)]
    module = nn.Sequential(nn.Embedding(128, 640), *blocks, nn.LayerNorm(640), nn.Linear(640, 128))
    return module, torch.randint(128, (case.batch, 128))


def _resnet18(case: TorchModule) -> tuple[nn.Module, Any]:
    """ResNet-18 for images of 32 x 32."""
    blocks = [Block(a, b, s) for a, b, s in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))]
    body = [each for block, c in zip(blocks, (64, 128, 256, 512)) for each in (block, Block(c, c, 1))]
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
    module = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))
    return module.eval(), torch.randn(case.batch, 3, 32, 32)


def _encoder(case: TorchModule) -> tuple[nn.Module, Any]:
    """A BERT-like encoder of 768 features, 128 tokens."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(vocab_size=1000, num_hidden_layers=case.layers)).eval()
    return model, {"input_ids": torch.randint(1000, (case.batch, 128))}


def _decoder(case: TorchModule) -> tuple[nn.Module, Any]:
    """A Llama-like decoder of 2048 features."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=case.layers, num_attention_heads=16,
        vocab_size=4096, max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(4096, (case.batch, 2 * TOKENS))}


_NETWORKS = {"mlp": _mlp, "gpt": _gpt, "resnet18": _resnet18, "encoder": _encoder, "decoder": _decoder}


@functools.lru_cache(maxsize=1)  # the baselines of one workload come one after the other
def _pair(case: TorchModule) -> tuple[nn.Module, nn.Module, Any]:
    """The sparse module, a dense twin with the same zeros, and an input.

    In training all layers that take part are sparse, of a GPT the two behind attention; for inference, those that gain.
    """
    gc.collect()  # modules refer to each other, and those of two workloads may be more than the memory
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - transformers' initialisation
    module, x = _NETWORKS[case.network](case)
    chosen: dict[str, Any] = {"measure": False} if module.training else {"example_inputs": x}
    if case.network == "gpt":
        chosen["filter_fn"] = lambda name, _: ".mlp." in name
    if case.network == "decoder":  # a token at a time
        chosen = {
            "example_inputs": {"input_ids": x["input_ids"][:, :1]},
            "filter_fn": lambda name, _: name != "lm_head",
        }
    fst.sparsify(module, case.sparsity, **chosen)
    return module, fst.densify(copy.deepcopy(module)), x


def _output(module: nn.Module, x: Any) -> np.ndarray:
    with torch.no_grad():
        y = module(**x) if isinstance(x, dict) else module(x)
    y = y if isinstance(y, Tensor) else y[0]
    return y.float().numpy()


def expected(case: TorchModule) -> list[tuple[Any, ...]]:
    """The dense twin's output; the largest difference allowed is relative to its largest number."""
    _, dense, x = _pair(case)
    y = _output(dense, x)
    return [(y, 1e-4 * np.abs(y).max())]


def _run(case: TorchModule, network: nn.Module) -> Call:
    """What is timed: a step of training, a generation, or a call."""
    x = _pair(case)[2]
    if network.training:
        y = x.flatten() if case.network == "gpt" else torch.randint(CLASSES, (len(x),))
        call = _step(network, x, y)
    elif case.network == "decoder":
        words: dict[str, Any] = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        mask = torch.ones_like(x["input_ids"])
        call = torch.no_grad()(lambda: network.generate(**x, attention_mask=mask, pad_token_id=0, **words))
    else:
        call = torch.no_grad()(lambda: network(**x) if isinstance(x, dict) else network(x))
    call.result = lambda: _output(network, x)
    return call


def _step(network: nn.Module, x: Tensor, y: Tensor) -> Any:
    """Forward pass, loss, backward pass, SGD with momentum."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x).flatten(0, -2), y).backward()
        optimizer.step()

    return step


def ours(case: TorchModule) -> Call:
    """Layers of fastsparse.torch."""
    module, _, _ = _pair(case)
    call = _run(case, module)
    sparse = sum(hasattr(layer, "indptr") for layer in module.modules())
    call.facts = {"sparse layers": sparse}  # type: ignore[attr-defined]
    return call


def dense(case: TorchModule) -> Call:
    """torch's own layers."""
    return _run(case, _pair(case)[1])


def half(case: TorchModule) -> Call | None:
    """The decoder in bfloat16."""
    if case.network != "decoder":
        return None
    return _run(case, copy.deepcopy(_pair(case)[1]).to(torch.bfloat16))


def _with_layers(case: TorchModule, make: Callable[[nn.Linear], nn.Module]) -> Call | None:
    """In training: the twin with what `make` makes of its linear layers with zeros."""
    module = copy.deepcopy(_pair(case)[1])
    if not module.training:
        return None
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and torch.count_nonzero(child.weight) < 0.5 * child.weight.numel():
                setattr(parent, name, make(child))
    return _run(case, module)


def sparselab(case: TorchModule) -> Call | None:
    """Layers of SparseLab."""
    return _with_layers(case, training.sparselab)


def sparseprop(case: TorchModule) -> Call | None:
    """Layers of SparseProp."""
    return _with_layers(case, training.sparseprop)


def free(case: TorchModule) -> Call | None:
    """Layers whose products take no time, and are wrong: what no library's layers can make faster."""
    return _with_layers(case, _FreeLayer)


# ----------------------------------------------------------------------------------------------- bounds of a step


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
    """A linear layer with the parameters of a sparse one, whose products take no time."""

    y: Tensor | None = None
    grad: Tensor | None = None

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(int(torch.count_nonzero(like.weight))))
        self.bias = nn.Parameter(torch.zeros(like.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return _Free.apply(x, self.values, self.bias, self)


def bare_kernels(case: TorchModule) -> Call | None:
    """The kernels of the MLP's step without torch; values are packed anew in each."""
    if case.network != "mlp":
        return None
    layers = [m for m in _pair(case)[0].modules() if isinstance(m, fst.SparseLinear)]
    kept = [
        (layer.matrix(), layer.bias.detach().numpy(), i > 0,
         *(torch.randn(case.batch, n).numpy() for n in (layer.in_features, layer.out_features)))
        for i, layer in enumerate(layers)
    ]  # fmt: skip

    def step() -> None:
        for weight, bias, need_input, x, grad in kept:
            fresh = weight.with_data(weight.data)
            fs.linear(x, fresh, bias)
            fs.linear_backward(grad, x, fresh, need_input=need_input)

    return step


# --------------------------------------------------------------------------------------------------------- a call


def layer(case: TorchCall) -> Call:
    """A sparse layer, or its operator, with next to no work."""
    layer, x = _layer()
    arguments = (layer.values, layer.bias, layer.indptr, layer.indices, 8, False)
    operator = torch.ops.fastsparse.linear.default
    return torch.no_grad()((lambda: operator(x, *arguments)) if case.name == "operator" else (lambda: layer(x)))


def dense_layer(case: TorchCall) -> Call:
    """The dense layer of the same weights."""
    layer, x = _layer()
    dense = layer.to_dense()
    return torch.no_grad()(lambda: dense(x))


def _layer() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return fst.SparseLinear(8, 8, sparsity=0.9), torch.randn(1, 8)


def expected_layer(case: TorchCall) -> list[tuple[Any, ...]]:
    """The dense layer's output."""
    y = dense_layer(case)().numpy()
    return [(y, 1e-4 * np.abs(y).max())]
