"""Test the int4 computations that only a GPU can run; all tests are skipped without one.

python -m pytest tests/kernels/test_gpu.py
"""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int4Tensor, Int4WeightOnlyConfig
from transformers import AutoModelForCausalLM, LlamaConfig

import calibrated
import in_memory
import weights
from by_gptq import compensate
from int4_qat.checkpoint import blocks
from int4_qat.engines import decoding, inference
from int4_qat.kernels import tiles
from int4_qat.quantization import clipping, compensation, int4, plain_weight, schemes, torchao_tensor
from int4_qat.system import cuda_graphs, files
from int4_qat.training import learned_grid, merged_linear, merged_weight, qat
from programs import SCHEMES, quantize_options, run_script

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROWS, COLUMNS, INT4 = 256, 3840, schemes.int4(128)
ZERO_POINTS = [schemes.FLOAT, schemes.INTEGER, None]
FEW, MANY = tiles.TilePackedLinear.FEW_TOKENS, tiles.TilePackedLinear.FEW_TOKENS + 1


def normal(*shape, seed=0, device="cuda"):
    return weights.normal(*shape, seed=seed).to(device, torch.bfloat16)


def linear_of(quantized):
    """Return a linear without a weight and an int4 weight on the GPU, as the loader packs them."""
    weight = int4.Int4Weight(*(part.cuda() for part in quantized))
    return torch.nn.Linear(*reversed(weight.codes.shape), bias=False, device="meta"), weight


def relative_difference(found, expected):
    return (torch.linalg.vector_norm(found.float() - expected) / torch.linalg.vector_norm(expected)).item()


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("scaling", [0.01, 1.0])
@pytest.mark.parametrize("given", [False, True])
def test_training_on_a_gpu_sees_what_the_export_on_a_cpu_writes(scaling, zero_point, given):
    scheme = schemes.int4(128, zero_point)
    rows, columns = 3840, 15360  # an MLP of Gemma 3 12B: fewer weights could agree by luck
    w, a, b = normal(rows, columns), normal(8, columns, seed=1).float(), normal(rows, 8, seed=2).float()
    merged = blocks.merge(w.cpu(), a.cpu(), b.cpu(), scaling)
    grid = calibrated.grid_near(w.cpu(), scheme) if given else None
    expected = int4.dequantize(int4.quantize(merged, scheme, grid)).to(torch.bfloat16)
    grid = grid and int4.Grid(*(part.cuda() for part in grid))
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(merged_weight.fake_quantize_merged(w, a, b, scaling, scheme, grid).cpu(), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_on_the_gpu_of_their_tensors():
    w, a, b = normal(ROWS, COLUMNS), normal(8, COLUMNS, seed=1).float(), normal(ROWS, 8, seed=2).float()
    merged = blocks.merge(w.cpu(), a.cpu(), b.cpu(), 0.5)
    expected = int4.fake_quantize(merged, INT4)
    other = [part.to("cuda:1") for part in (w, a, b)]
    assert torch.equal(merged_weight.fake_quantize_merged(*other, 0.5, INT4).cpu(), expected)
    linear, weight = linear_of(int4.quantize(merged, INT4))
    packed = tiles.TilePackedLinear(linear, weight).to("cuda:1")
    x = normal(MANY, COLUMNS, seed=3).to("cuda:1")
    assert torch.equal(packed(x), x @ expected.to("cuda:1").T)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_a_merged_linear_in_a_compiled_layer_has_the_exported_weight(zero_point):
    scheme = schemes.int4(128, zero_point)
    w, a, b = normal(ROWS, COLUMNS), normal(8, COLUMNS, seed=1).float(), normal(ROWS, 8, seed=2).float()
    expected = int4.dequantize(int4.quantize(blocks.merge(w.cpu(), a.cpu(), b.cpu(), 0.5), scheme)).to(torch.bfloat16)

    def layer(x):
        return merged_linear.apply(x.float() * 1.0, w, a, b, 0.5, scheme, None)

    with torch.autocast("cuda", torch.bfloat16):
        found = torch.compile(layer, fullgraph=True)(torch.eye(COLUMNS, device="cuda", dtype=torch.bfloat16))
    assert torch.equal(found.T.cpu(), expected)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_a_learned_grid_is_the_same_within_autocast_and_without(zero_point):
    """Both equal the plain chain of operations, which rounds in the same places; one compilation serves both."""
    grid = int4.quantize(normal(ROWS, COLUMNS), scheme := schemes.int4(128, zero_point)).grid
    learned = learned_grid.LearnedGrid(grid, scheme).cuda()
    torch.nn.init.normal_(learned.log_scale, std=0.1, generator=torch.Generator("cuda").manual_seed(0))
    parameters = [part.detach() for part in (learned.log_scale, learned.shift, learned.scale, learned.offset)]
    expected = learned_grid.seen(*parameters, scheme)
    with torch.autocast("cuda", torch.bfloat16):
        within = learned_grid.run(learned_grid.seen, *parameters, scheme)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    without = learned_grid.run(learned_grid.seen, *parameters, scheme)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    for found in (within, without):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_weights_on_a_cpu_are_quantized_on_the_gpu_where_their_grids_stay():
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")

    def trained(target, learned, device):
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), lora)
        qat.fake_quantize_linears(model, target, INT4, learned=learned, device=device)
        return list(qat.lora_linears(model).values())

    for found, expected in zip(trained("base", False, "cuda"), trained("base", False, None), strict=True):
        assert found.base_layer.weight.device.type == "cpu"
        assert torch.equal(found.base_layer.weight, expected.base_layer.weight)
    for linear in trained("merged", True, "cuda"):
        assert (linear.base_layer.weight.device.type, linear.grid.scale.device.type) == ("cpu", "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mslk_quantizes_to_the_same_codes(dtype):
    """This runs on a CPU: a GPU multiplies by 1/15 instead of dividing by 15, which changes one scale in a thousand."""
    pytest.importorskip("mslk")
    w = normal(ROWS, COLUMNS, device="cpu").to(dtype)
    theirs = Int4Tensor.from_hp(w, [1, INT4.group_size])
    ours = torchao_tensor.of_weight(int4.quantize(w, INT4))
    for part in ("qdata", "scale", "zero_point"):
        assert torch.equal(getattr(theirs, part).to(getattr(ours, part).dtype), getattr(ours, part)), part


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("tokens", [1, 8, 256])
def test_mslk_computes_with_the_dequantized_weight(tokens, zero_point):
    """A folder loaded with transformers alone has torchao's tensors, which use mslk's kernel."""
    pytest.importorskip("mslk")
    quantized = int4.quantize(normal(ROWS, COLUMNS), schemes.int4(128, zero_point))
    x = normal(tokens, COLUMNS, seed=3)
    linear, weight = linear_of(quantized)
    linear.weight = torch.nn.Parameter(torchao_tensor.of_weight(weight), requires_grad=False)
    assert relative_difference(linear(x), x.float() @ int4.dequantize(weight).T) < 0.01


@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(ROWS, COLUMNS, 128), (45, 320, 64), (45, 416, 32), (45, 512, 256)]
)
def test_tiles_are_unpacked_to_the_exported_weight(rows, columns, group_size):
    quantized = int4.quantize(normal(rows, columns, device="cpu"), schemes.int4(group_size))
    packed = tiles.TilePackedLinear(*linear_of(quantized))
    assert torch.equal(tiles.unpack_tiles(packed.tiles)[:rows, :columns].cpu(), quantized.codes)
    for dtype in (torch.float32, torch.bfloat16):
        weight = tiles.dequantize_tiles(packed.tiles, packed.scale_and_zero, dtype)[:rows, :columns]
        assert torch.equal(weight.cpu(), int4.dequantize(quantized).to(dtype))


@pytest.mark.parametrize("tokens", [1, 8, FEW, MANY, 256])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(ROWS, COLUMNS, 128), (45, 320, 64)])
def test_a_tile_packed_linear_computes_with_the_dequantized_weight(rows, columns, group_size, tokens):
    quantized = int4.quantize(normal(rows, columns), schemes.int4(group_size))
    model, x = tiles.TilePackedLinear(*linear_of(quantized)), normal(tokens, columns, seed=3)
    assert relative_difference(model(x), x.float() @ int4.dequantize(quantized).T) < 0.01


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_a_tile_packed_linear_compiles(tokens):
    model = tiles.TilePackedLinear(*linear_of(int4.quantize(normal(ROWS, COLUMNS), INT4)))
    x = normal(tokens, COLUMNS)
    assert relative_difference(torch.compile(model, fullgraph=True)(x), model(x).float()) < 0.01


@pytest.fixture(scope="module")
def exported(untrained, tmp_path_factory):
    """Return an int4 folder."""
    folder = tmp_path_factory.mktemp("exported") / "int4"
    paths = ["--checkpoint", untrained / "model", "--output", folder]
    result = run_script("quantize", *paths, *quantize_options())
    assert result.returncode == 0, result.stderr
    return folder


def test_the_exported_folder_says_on_a_gpu_what_it_says_on_a_cpu(exported):
    tokens = torch.arange(10, 42).view(1, -1)
    with torch.no_grad():
        expected, found = (
            inference.load_model(exported, torch.bfloat16, device)(input_ids=tokens.to(device)).logits.float()
            for device in ("cpu", "cuda")
        )
    assert relative_difference(found.cpu(), expected) < 0.05


def test_the_loader_packs_the_same_tiles_of_both_formats(untrained, tmp_path):
    """On a GPU the weights stay packed, whichever folder they come from."""
    states = []
    for word in ("torchao-plain", "compressed-tensors"):
        options = quantize_options(SCHEMES["integer"])
        options[options.index("--format") + 1] = word
        paths = ["--checkpoint", untrained / "model", "--output", tmp_path / word]
        assert run_script("quantize", *paths, *options).returncode == 0
        states.append(inference.load_model(tmp_path / word, torch.bfloat16, "cuda").state_dict())
    assert states[0].keys() == states[1].keys()
    assert any(name.endswith(".tiles") for name in states[0])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_generate_runs_on_a_gpu(exported):
    result = run_script("generate", "--checkpoint", exported, "--device", "cuda", "--max-new-tokens", 8)
    assert result.returncode == 0, result.stderr


def test_latency_is_measured_on_a_gpu(exported, tmp_path):
    options = ["--checkpoint", exported, "--engine", "transformers", "--dtype", "bfloat16", "--device", "cuda"]
    options += ["--input-len", 8, "--output-len", 4, "--batch-sizes", 1, 8, "--warmup", 2, "--iterations", 3]
    result = run_script("measure_latency", *options, "--output", tmp_path / "latency.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "latency.json").read_text())
    assert report["int4_path"] == inference.TILE_PACKED
    assert [len(batch["latencies_s"]) for batch in report["batches"]] == [3, 3]


def test_the_decoding_step_is_compiled_once_and_continues_as_it_does_uncompiled(exported, monkeypatch):
    model, counters = inference.load_model(exported, torch.float32, "cuda"), torch._dynamo.utils.counters
    prompts = [torch.randint(10, 500, (2, 8), generator=torch.Generator().manual_seed(i)).cuda() for i in range(2)]
    counters.clear()
    decoder = decoding.GreedyDecoder(model, 14)
    found = [decoder(prompt, 6) for prompt in prompts]
    assert counters["stats"]["unique_graphs"] == 1
    monkeypatch.setattr(decoding.GreedyDecoder, "recorded", lambda decoder: decoder.next_token)
    plain = decoding.GreedyDecoder(model, 14)
    assert all(torch.equal(plain(*pair), tokens) for *pair, tokens in zip(prompts, (6, 6), found, strict=True))


def loud_to_quiet(columns, tokens=4096):
    """Return second moments of correlated inputs, the largest first, so that GPTQ keeps their order."""
    inputs = weights.normal(tokens, columns, seed=1) @ (
        torch.eye(columns) + weights.normal(columns, columns, seed=2) / 50
    )
    inputs = inputs / inputs.square().mean(0).sqrt() * torch.logspace(0.5, -0.5, columns)
    return (inputs.T @ inputs / tokens).cuda()


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_a_replayed_graph_rounds_as_the_steps_do_one_by_one(zero_point, monkeypatch):
    weight, moments, scheme = normal(384, 512).float(), loud_to_quiet(512), schemes.int4(128, zero_point)
    replayed = [compensate(weight, moments, scheme) for _ in range(2)]
    monkeypatch.setattr(cuda_graphs, "replayed", lambda function, *tensors: function(*tensors))
    expected, grid = compensate(weight, moments, scheme)
    for found, found_grid in replayed:
        assert torch.equal(found, expected)
        assert all(torch.equal(*pair) for pair in zip(found_grid, grid, strict=True))


def test_gptq_is_torchaos_on_its_grid(monkeypatch):
    api = pytest.importorskip("torchao.prototype.gptq.api")
    weight, moments = normal(384, 512).float(), loud_to_quiet(512)
    monkeypatch.setattr(api, "int4_row_quantize_zp", lambda group, _: (None, *int4.quantize(group, INT4).grid))
    monkeypatch.setattr(api, "pack_int4", plain_weight.pack)
    monkeypatch.setattr(clipping, "SHARES", (1.0,))
    config = api.GPTQConfig("convert", Int4WeightOnlyConfig(group_size=128), compensation.DAMPING)
    theirs = in_memory.to_weight(api.gptq_quantize(moments.clone(), weight.clone(), config))
    compensated, grid = compensate(weight, moments, INT4)
    ours = int4.quantize(compensated, INT4, grid)
    # Ours stores the weights that it rounds in bfloat16. Where that changes a code, later columns change as well.
    assert (ours.codes == theirs.codes).float().mean() > 0.7
    errors = [int4.dequantize(each) - weight for each in (ours, theirs)]
    cost, expected = ((error @ moments * error).sum().item() for error in errors)
    assert cost == pytest.approx(expected, rel=0.01)


def test_two_calibrations_on_a_gpu_give_the_same_bytes(llama, texts, tmp_path):
    scheme = json.dumps(schemes.int4(64, schemes.INTEGER).words)
    options = ["--scheme", scheme, "--method", "gptq", "--texts", texts, "--samples", 8, "--length", 64]
    options += ["--batch-size", 4, "--seed", 0, "--dtype", "bfloat16", "--device", "cuda"]
    for name in ("one", "other"):
        result = run_script("calibrate", "--checkpoint", llama, *options, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    assert files.digest(tmp_path / "one") == files.digest(tmp_path / "other")
