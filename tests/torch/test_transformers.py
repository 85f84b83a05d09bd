"""Models of Hugging Face's transformers, made from a config: sparsified, they give what their dense twins give."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import fastsparse.torch as fst
from fastsparse.torch.layers import SparseLayer

BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100}
LLAMA = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}


def twins(model, sparsity, **keywords):
    """The sparse model, its dense twin with the same zeros, and the report."""
    torch.manual_seed(0)
    model.eval()
    tokens = torch.randint(100, (1, 8))
    report = fst.sparsify(model, sparsity, example_inputs={"input_ids": tokens}, measure=False, **keywords)
    return model, fst.densify(copy.deepcopy(model)), report


def assert_agree(y, expected):
    assert float((y - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_an_encoder(sparsity):
    model, dense, report = twins(transformers.BertModel(transformers.BertConfig(**BERT)), sparsity)
    assert len(report.replaced) == 2 * 6 + 1
    tokens, mask = torch.randint(100, (3, 11)), torch.ones(3, 11, dtype=torch.long)
    mask[1, 7:] = 0
    with torch.no_grad():
        y, expected = (m(tokens, attention_mask=mask) for m in (model, dense))
    assert_agree(y.last_hidden_state, expected.last_hidden_state)
    assert_agree(y.pooler_output, expected.pooler_output)
    assert not any(isinstance(m, SparseLayer) for m in dense.modules())


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_decoder_that_generates(method):
    """With its cache of keys and values, after a prompt."""
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
    model, dense, report = twins(transformers.LlamaForCausalLM(config), 0.7, method=method)
    assert len(report.replaced) == 2 * 7
    assert [r.note for r in report.layers if r.name == "lm_head"] == ["shares its weight with model.embed_tokens"]
    prompt = torch.randint(100, (1, 16))
    keywords = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    keywords |= {"output_logits": True, "return_dict_in_generate": True, "attention_mask": torch.ones_like(prompt)}
    found, expected = (m.generate(prompt, **keywords) for m in (model, dense))
    assert found.sequences.shape == (1, 24)
    assert_agree(torch.stack(found.logits), torch.stack(expected.logits))


def test_the_transposed_layers_of_gpt2():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    kinds = {type(m).__name__ for m in model.modules()}
    assert "Conv1D" in kinds
    model, dense, report = twins(model, 0.8)
    assert len(report.replaced) == 2 * 4
    tokens = torch.randint(100, (2, 9))
    with torch.no_grad():
        assert_agree(model(tokens).logits, dense(tokens).logits)


def test_fine_tuning():
    model, dense, _ = twins(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), 0.8)
    tokens = torch.randint(100, (2, 12))
    for network in (model, dense):
        network(tokens, labels=tokens).loss.backward()
    layer, twin = model.model.layers[0].mlp.down_proj, dense.model.layers[0].mlp.down_proj
    rows = torch.repeat_interleave(torch.arange(len(twin.weight)), layer.indptr.diff())
    assert_agree(layer.values.grad, twin.weight.grad[rows, layer.indices.long()])
    assert_agree(model.model.embed_tokens.weight.grad, dense.model.embed_tokens.weight.grad)
