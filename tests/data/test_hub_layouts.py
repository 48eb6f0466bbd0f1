"""The sources in config.yaml are read in their layouts on the Hub: file names, columns, types and oddities, in small.

Nothing here was downloaded. The layouts are those that public pages show; a comment above each layout names the page.
All content is the stand-in's or made up.
"""

import io
import json
import shutil
import subprocess

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor, Gemma3ForConditionalGeneration

import download_dataset
from int4_qat.checkpoint import model_folder
from int4_qat.data import mmlu
from int4_qat.engines import inference
from int4_qat.standin import gemma_folder
from int4_qat.tokenizer import tokenization
from programs import ROOT, environment, run_script

TEXT = datasets.Value("string")

# huggingface.co/datasets/cais/mmlu/commit/c30699e8356da336a370243923dbaf21066bb9fe is the commit of config.yaml. In it,
# `all` has auxiliary_train, with 99,842 rows; test has 14,042, validation 1,531 and dev 285. The README's dataset_info
# gives the features. The subject is empty in every row of auxiliary_train (discussions/27). Each subject has a folder,
# and so has auxiliary_train, once more, with a column of its own form.
MMLU_FILES = [
    *(".gitattributes", "README.md", "auxiliary_train/train-00000-of-00001.parquet"),
    *(f"{folder}/{split}-00000-of-00001.parquet" for folder in ("all", "anatomy") for split in mmlu.EVALUATION_SPLITS),
    "all/auxiliary_train-00000-of-00001.parquet",
]
MMLU_FEATURES = datasets.Features(
    {
        "question": TEXT,
        "subject": TEXT,
        "choices": datasets.List(TEXT),
        "answer": datasets.ClassLabel(names=list("ABCD")),
    }
)

# huggingface.co/datasets/allenai/ai2_arc/tree/210d026faf9955653af8916fad021475a3f00453 lists the files. The README's
# dataset_info and configs are as in the re-upload huggingface.co/datasets/nthngdy/ai2_arc. Most keys are A-D, and some
# are 1-4 (22 of ARC-Challenge's 1,172 test questions, github.com/modelscope/evalscope/pull/1516). A few questions have
# three or five choices (github.com/EleutherAI/lm-evaluation-harness/pull/1760).
ARC_SPLITS = ("train", "test", "validation")
ARC_FILES = [
    *(".gitattributes", "README.md"),
    *(f"ARC-{level}/{split}-00000-of-00001.parquet" for level in ("Challenge", "Easy") for split in ARC_SPLITS),
]
ARC_HEADER = """\
  features:
  - name: id
    dtype: string
  - name: question
    dtype: string
  - name: choices
    sequence:
    - name: text
      dtype: string
    - name: label
      dtype: string
  - name: answerKey
    dtype: string
"""
ARC_QUESTIONS = [("ABCD", "C"), ("1234", "3"), ("ABC", "B"), ("ABCDE", "E"), ("1234", "1"), ("ABCD", "A")]

# The layout is from huggingface.co/datasets/lmms-lab/ChartQA/tree/9e63b7df1592a1c2158e735cc1725454aef0d6d9 and its
# README (on the page of lmms-lab-encoder/ChartQA, the repository's present name). It has 2,500 rows; `type` is
# human_test or augmented_test (lmms-eval's tasks/chartqa/utils.py).
CHARTQA_FILES = [".gitattributes", "README.md", "data/test-00000-of-00001.parquet"]
CHARTQA_HEADER = """\
dataset_info:
  features:
  - name: type
    dtype: string
  - name: question
    dtype: string
  - name: answer
    dtype: string
  - name: image
    dtype: image
  splits:
  - name: test
    num_examples: 4
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test-*
"""

# google/gemma-3-12b-it is gated, so its layout is taken from public re-uploads. The list of files comes from
# huggingface.co/IntervitensInc/gemma-3-12b-it-chatml at commit c576e4613583f64d4d985532971d5ae3ef3f6b42. The keys of
# config.json come from huggingface.co/harmonicdata/Gemma3-SD-v0.2 (text) and huggingface.co/mlx-community/
# gemma-3-4b-it-bf16 (vision). The config says `torch_dtype`, not `dtype`, and has no head_dim, tie_word_embeddings or
# layer_types.
GEMMA_SHARDS = [f"model-{number:05}-of-00005.safetensors" for number in range(1, 6)]
GEMMA_FILES = [
    *(".gitattributes", "README.md", "added_tokens.json", "chat_template.json", "config.json", *GEMMA_SHARDS),
    *("generation_config.json", "model.safetensors.index.json", "preprocessor_config.json", "processor_config.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
]
GEMMA_CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "vocab_size": 262208,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


def taken(files, patterns, left_out=None):
    """Return the files that the Hub's client fetches with the patterns that hub.download gives it."""
    return sorted(filter_repo_objects(files, allow_patterns=patterns, ignore_patterns=left_out))


def test_all_is_taken_that_is_needed():
    """The patterns of download_mmlu are tested below, by the files that they select."""
    tables = [*download_dataset.TABLES, download_dataset.CARD]
    for files, patterns in (
        (GEMMA_FILES, model_folder.PATTERNS),
        (ARC_FILES, tables),
        (CHARTQA_FILES, tables),
    ):
        assert taken(files, patterns) == sorted(set(files) - {".gitattributes"})


@pytest.fixture(scope="module")
def hub_mmlu(untrained, tmp_path_factory):
    """Return the stand-in's questions in the layout of cais/mmlu; files that must not be read are not valid parquet."""
    folder = tmp_path_factory.mktemp("cais mmlu")
    for name in MMLU_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not read")
    for split in mmlu.SPLITS:
        table = pd.read_parquet(untrained / "mmlu" / "all" / f"{split}-00000-of-00001.parquet")
        if split == mmlu.TRAIN_SPLIT:
            table["subject"] = ""
        rows = datasets.Dataset.from_pandas(table, MMLU_FEATURES, preserve_index=False)
        rows.to_parquet(folder / "all" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def downloaded(hub_mmlu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resources") / "mmlu"
    result = run_script("download_mmlu", "--source", hub_mmlu, "--num-fewshot", 5, "--output", folder)
    assert result.returncode == 0, result.stderr
    assert "auxiliary_train: 200 rows, 0 subjects" in result.stdout
    return folder


def test_mmlu_trains_without_subjects(untrained, texts, downloaded, tmp_path):
    """The texts equal those made with subjects, which the stand-in's own files have."""
    train = downloaded / "auxiliary_train.parquet"
    options = ["--mmlu", train, "--tokenizer", untrained / "model", "--output", tmp_path / "train.parquet"]
    result = run_script("format_mmlu", *options)
    assert result.returncode == 0, result.stderr
    written, expected = pq.read_table(tmp_path / "train.parquet"), pq.read_table(texts)
    assert written["text"].equals(expected["text"])
    assert (set(written["subject"].to_pylist()), written.schema) == ({""}, expected.schema)
    options = [
        "--train",
        train,
        "--test",
        f"mmlu={downloaded / 'test.parquet'}",
        "--output",
        tmp_path / "contamination.json",
    ]
    result = run_script("check_contamination", *options)
    assert result.returncode == 0, result.stderr


def test_mmlu_without_a_subject_at_all(hub_mmlu, tmp_path):
    """The subject may be null, as other tools write empty values."""
    source = shutil.copytree(hub_mmlu, tmp_path / "source")
    path = source / "all" / "auxiliary_train-00000-of-00001.parquet"
    pd.read_parquet(path).assign(subject=None).to_parquet(path)
    result = run_script("download_mmlu", "--source", source, "--output", tmp_path / "mmlu")
    assert result.returncode == 0, result.stderr
    subjects = pq.read_table(tmp_path / "mmlu" / "auxiliary_train.parquet")["subject"]
    assert set(subjects.to_pylist()) == {""}


def test_mmlu_is_scored_by_lm_evals_task(untrained, downloaded, tmp_path):
    options = ["--checkpoint", untrained / "model", "--mmlu", downloaded, "--num-fewshot", 0, "--batch-size", 16]
    outputs = ["--output", tmp_path / "0.json", "--samples", tmp_path / "0.parquet"]
    result = run_script("evaluate_mmlu", *options, "--dtype", "float32", *outputs)
    assert result.returncode == 0, result.stderr
    samples = pd.read_parquet(tmp_path / "0.parquet")
    test = pd.read_parquet(untrained / "mmlu" / "all" / "test-00000-of-00001.parquet")
    for subject, rows in test.groupby("subject"):
        assert samples[samples["subject"] == subject]["answer"].tolist() == rows["answer"].tolist()
    assert len(samples) == len(test)


@pytest.fixture(scope="module")
def hub_arc(untrained, tmp_path_factory):
    """Return the stand-in's questions in the layout of allenai/ai2_arc."""
    folder = tmp_path_factory.mktemp("ai2_arc")
    words = pd.read_parquet(untrained / "mmlu" / "all" / "test-00000-of-00001.parquet")
    labels, keys = zip(*ARC_QUESTIONS, strict=True)
    choices = [
        {"text": [*row, "fifth"][: len(label)], "label": list(label)}
        for row, label in zip(words["choices"], labels, strict=False)
    ]
    questions = words["question"].tolist()[: len(keys)]
    header, configs = ["dataset_info:\n"], ["configs:\n"]
    for level in ("Challenge", "Easy"):
        (folder / f"ARC-{level}").mkdir()
        header.append(f"- config_name: ARC-{level}\n{ARC_HEADER}  splits:\n")
        configs.append(f"- config_name: ARC-{level}\n  data_files:\n")
        for split in ARC_SPLITS:
            ids = [f"Mercury_{split}_{number}" for number in range(len(keys))]
            table = pd.DataFrame({"id": ids, "question": questions, "choices": choices, "answerKey": keys})
            table.to_parquet(folder / f"ARC-{level}" / f"{split}-00000-of-00001.parquet", index=False)
            header.append(f"  - name: {split}\n    num_examples: {len(keys)}\n")
            configs.append(f"  - split: {split}\n    path: ARC-{level}/{split}-*\n")
    (folder / "README.md").write_text(f"---\n{''.join([*header, *configs])}---\n# ARC\n")
    (folder / ".gitattributes").touch()
    return folder


def likeliest(model, tokenizer, question, choices):
    """Return the index of the choice with the highest log-likelihood after lm-eval's ARC prompt, without lm-eval."""
    prompt = f"Question: {question}\nAnswer:"
    start, totals = len(tokenizer(prompt)["input_ids"]), []
    for choice in choices:
        tokens = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"]])
        scores = model(tokens).logits[0, start - 1 : -1].log_softmax(-1)
        totals.append(scores.gather(1, tokens[0, start:, None]).sum().item())
    return totals.index(max(totals))


@pytest.mark.slow
@torch.no_grad()
def test_arc_is_scored_whatever_its_labels(untrained, hub_arc, tmp_path):
    result = run_script("download_dataset", "--source", hub_arc, "--output", tmp_path / "arc")
    assert result.returncode == 0, result.stderr
    files = sorted(str(path.relative_to(tmp_path / "arc")) for path in (tmp_path / "arc").rglob("*") if path.is_file())
    assert files == taken(ARC_FILES, ["*.parquet", "README.md"])
    options = ["--checkpoint", untrained / "model", "--task", "arc_challenge", "--dataset", tmp_path / "arc"]
    options += ["--num-fewshot", 0, "--batch-size", 4, "--dtype", "float32", "--output", tmp_path / "arc.json"]
    options += ["--samples", tmp_path / "arc.parquet"]
    result = run_script("evaluate_task", *options)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "arc.json").read_text())
    model = inference.load_model(untrained / "model", torch.float32, "cpu")
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    rows = pq.read_table(hub_arc / "ARC-Challenge" / "test-00000-of-00001.parquet").to_pylist()
    right = [
        likeliest(model, tokenizer, row["question"], row["choices"]["text"])
        == row["choices"]["label"].index(row["answerKey"])
        for row in rows
    ]
    assert report["questions"] == len(ARC_QUESTIONS)
    assert report["metrics"]["acc,none"]["value"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
def test_chartqa_is_scored_by_lmms_evals_task(untrained, tmp_path):
    variables = environment("lmms")
    png = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(png, "PNG")
    rows = [
        {"type": kind, "question": "Which is it?", "answer": answer, "image": {"bytes": png.getvalue(), "path": None}}
        for kind, answer in (
            ("human_test", "14"),
            ("human_test", "Yes"),
            ("augmented_test", "0.57"),
            ("augmented_test", "-3"),
        )
    ]
    source = tmp_path / "ChartQA"
    features = datasets.Features({"type": TEXT, "question": TEXT, "answer": TEXT, "image": datasets.Image()})
    datasets.Dataset.from_list(rows, features).to_parquet(source / "data" / "test-00000-of-00001.parquet")
    (source / "README.md").write_text(f"---\n{CHARTQA_HEADER}---\n# ChartQA\n")
    result = run_script("download_dataset", "--source", source, "--output", tmp_path / "chartqa")
    assert result.returncode == 0, result.stderr
    options = {"checkpoint": untrained / "model", "model": "gemma3", "dataset": tmp_path / "chartqa", "batch-size": 1}
    options |= {"lmms-runs": tmp_path / "lmms", "output": tmp_path / "chartqa.json"}
    options |= {"samples": tmp_path / "chartqa.parquet"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = ["python", str(ROOT / "scripts" / "evaluate_chartqa.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "chartqa.json").read_text())
    assert report["questions"] == len(rows)
    assert report["relaxed_overall"] == pytest.approx((report["human"] + report["augmented"]) / 2)


def test_gemmas_config_is_the_12b(tmp_path):
    """With transformers' defaults for missing keys, the config gives 12.19 billion parameters and a tied head."""
    (tmp_path / "config.json").write_text(json.dumps(GEMMA_CONFIG))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    assert sum(weight.numel() for weight in gemma_folder.hub_weights(model).values()) == 12_187_325_040
    assert config.text_config.layer_types.count("full_attention") == 8


@pytest.fixture(scope="module")
def hub_gemma(untrained, tmp_path_factory):
    """Return a tiny Gemma in the Hub's files: shards, an index, processor configs, and the template in two files."""
    folder = tmp_path_factory.mktemp("gemma")
    standin = {path.name: path for path in (untrained / "model").iterdir()}
    config = GEMMA_CONFIG | {"eos_token_id": [1, 5], "mm_tokens_per_image": 4}
    config |= {"boi_token_index": 6, "eoi_token_index": 7, "image_token_index": 8}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    config["text_config"] = config["text_config"] | text | {"num_hidden_layers": 6, "vocab_size": 10_240}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    config["vision_config"] = config["vision_config"] | vision | {"image_size": 28}
    (folder / "config.json").write_text(json.dumps(config))
    model = Gemma3ForConditionalGeneration(AutoConfig.from_pretrained(folder)).to(torch.bfloat16)
    weights = gemma_folder.hub_weights(model)
    index = {name: GEMMA_SHARDS[number % len(GEMMA_SHARDS)] for number, name in enumerate(sorted(weights))}
    for shard in GEMMA_SHARDS:
        save_file({name: weights[name] for name in weights if index[name] == shard}, folder / shard, {"format": "pt"})
    size = sum(weight.nbytes for weight in weights.values())
    template = standin["chat_template.jinja"].read_text()
    processors = json.loads(standin["processor_config.json"].read_text())
    contents = {
        "model.safetensors.index.json": {"metadata": {"total_size": size}, "weight_map": index},
        "generation_config.json": json.loads(standin["generation_config.json"].read_text()),
        "chat_template.json": {"chat_template": template},
        "tokenizer_config.json": json.loads(standin["tokenizer_config.json"].read_text()) | {"chat_template": template},
        "preprocessor_config.json": processors.pop("image_processor") | {"processor_class": "Gemma3Processor"},
        "processor_config.json": processors,
        "special_tokens_map.json": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        "added_tokens.json": {"<image_soft_token>": 8},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    shutil.copy(standin["tokenizer.json"], folder)
    for name in ("README.md", "tokenizer.model", ".gitattributes"):
        (folder / name).touch()
    assert sorted(path.name for path in folder.iterdir()) == sorted(GEMMA_FILES)
    return folder


def test_gemma_is_downloaded_loaded_and_formats_texts(hub_gemma, texts, downloaded, tmp_path):
    folder = tmp_path / "model"
    result = run_script("download_model", "--source", hub_gemma, "--output", folder)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == taken(
        GEMMA_FILES, model_folder.PATTERNS, model_folder.SECOND_COPIES
    )
    model = inference.load_model(folder, torch.bfloat16, "cpu")  # refuses missing and unexpected weights
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert AutoProcessor.from_pretrained(folder, local_files_only=True).image_seq_length == 4
    options = ["--mmlu", downloaded / "auxiliary_train.parquet", "--tokenizer", folder, "--output", tmp_path / "texts"]
    result = run_script("format_mmlu", *options)
    assert result.returncode == 0, result.stderr
    assert pq.read_table(tmp_path / "texts")["text"].equals(pq.read_table(texts)["text"])


def test_the_sources_are_those_of_the_config():
    """The comments above describe the commits that config.yaml names."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    arc, charts = config["evaluation"]["tasks"][0]["source"], config["evaluation"]["chartqa"]["source"]
    gemma = config["models"]["gemma-3-12b-it"]["source"]
    assert [config["data"]["source"], arc, charts, gemma] == [
        "hf://datasets/cais/mmlu@c30699e8356da336a370243923dbaf21066bb9fe",
        "hf://datasets/allenai/ai2_arc@210d026faf9955653af8916fad021475a3f00453",
        "hf://datasets/lmms-lab/ChartQA@9e63b7df1592a1c2158e735cc1725454aef0d6d9",
        "hf://google/gemma-3-12b-it@96b6f1eccf38110c56df3a15bffe176da04bfd80",
    ]
