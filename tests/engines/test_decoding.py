"""Compare the decoding that a GPU records, run here step by step on a CPU, with model.generate."""

import pytest
import torch

from int4_qat.engines.decoding import GreedyDecoder
from int4_qat.system import cuda_graphs
from random_models import MODELS, random_model

PROMPT, NEW = 12, 10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("texts", [1, 3])
def test_it_continues_as_generate_does(name, texts):
    kind, shapes = MODELS[name]
    model = random_model(kind, **shapes)
    kinds = getattr(model.config, "layer_types", None)
    decoder = GreedyDecoder(model, PROMPT + NEW)
    for seed in range(2):  # what the cache held before does not matter
        prompts = torch.randint(64, (texts, PROMPT), generator=torch.Generator().manual_seed(seed))
        expected = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW, do_sample=False)
        found = decoder(prompts, NEW)
        assert torch.equal(found, expected[:, PROMPT:])
        assert texts == 1 or len(set(found.flatten().tolist())) > 2
    assert getattr(model.config, "layer_types", None) == kinds


def test_a_step_that_cannot_be_recorded_is_taken_one_by_one(monkeypatch, capsys):
    """longrope reads a position, for which Python would wait for the GPU; here dynamo refuses it, without a GPU."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 4.0}
    rope |= {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 16}
    model = random_model("phi3", max_position_embeddings=64, rope_parameters=rope)
    prompts = torch.randint(64, (2, PROMPT), generator=torch.Generator().manual_seed(0))
    expected = GreedyDecoder(model, PROMPT + NEW)(prompts, NEW)
    monkeypatch.setattr(cuda_graphs, "record", lambda step, warm_up: warm_up())
    decoder = GreedyDecoder(model, PROMPT + NEW)
    decoder.start(prompts)
    decoder.step = decoder.recorded()
    assert "decoding more slowly, since no CUDA graph could be recorded: " in capsys.readouterr().out
    assert not decoder.cuda_graph
    assert torch.equal(decoder(prompts, NEW), expected)


def test_the_step_is_one_graph_for_the_compiler():
    """This tests dynamo's part; tests/kernels/test_gpu.py tests a GPU's compiler and the CUDA graph."""
    model = random_model("llama")
    prompts = torch.randint(64, (2, PROMPT), generator=torch.Generator().manual_seed(0))
    expected = GreedyDecoder(model, PROMPT + NEW)(prompts, NEW)
    decoder = GreedyDecoder(model, PROMPT + NEW)
    decoder.start(prompts)
    decoder.step = torch.compile(decoder.next_token, dynamic=False, backend="eager", fullgraph=True)
    assert torch.equal(decoder(prompts, NEW), expected)
