"""Make the demo's stand-in: a small Gemma 3 that knows invented facts, and an MMLU that asks for them.

The model has the real one's class (Gemma3ForConditionalGeneration, vision tower included); the data set has the Hub's
layout and MMLU's subjects. The model is trained on the questions of auxiliary_train until it answers those of
validation; the test questions are written and never looked at. Then a few input channels of its linears are made large,
and the norm before them small by the same factor. The function stays the same, and the weights get the outlier channels
that make real models hard to quantize. The factor is raised until int4 costs --int4-cost of the validation questions
and of the lines. No single factor suits all processors: they round differently, so the same seed trains different
models. The stand-in proves the machinery; its figures say nothing about Gemma's.

The lines tell the model about persons, whom no question mentions: they are what training on questions alone forgets.
text/ holds a text to train on, made of such lines and exam papers, and two held-out texts: other lines of the same
facts, and other exam papers. No question of a paper is in a split.

    python scripts/make_standin.py --output resources/standin --seed 0
"""

import argparse
import copy
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from int4_qat.checkpoint import blocks
from int4_qat.data import mmlu, mmlu_parquet
from int4_qat.evaluation import mmlu_harness
from int4_qat.quantization import int4, schemes
from int4_qat.standin import gemma_folder, persons, standin, standin_training
from int4_qat.standin.standin_training import Lesson
from int4_qat.system import errors, files
from int4_qat.tokenizer import training_texts

FOLDERS = ("mmlu", "model", "text")  # what is written
FAMILIES, WORDS = 12, 20
SIZES = {"auxiliary_train": 24_000, "dev": 285, "validation": 570, "test": 2_280}
PERSONS, VALUES = 120, 12
REPEATS = 5  # of each line in the text to train on
# Questions of texts: some 8,000 and 25,000 tokens. They are drawn after the splits, which they leave unchanged.
PAPERS = {"held_out": 342, "train": 1_200}
VOCABULARY = 10_240  # vLLM's latency benchmark draws token ids below 10,000
LAYERS, HIDDEN, HEADS = 3, 64, 2
IMAGE_SIDE, IMAGE_TOKENS = 28, 4
ATTEMPTS = 6
OUTLIER_SHARE, OUTLIER_STEP, LARGEST_OUTLIERS = 0.06, 2**0.125, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder for mmlu/, model/ and text/")
    parser.add_argument("--seed", type=int, default=0, help="seed of the invented facts and of the training")
    parser.add_argument(
        "--int4-cost",
        type=float,
        default=0.16,
        help="accuracy that int4 must cost, on questions and on lines of text",
    )
    arguments = parser.parse_args()
    files.refuse_folder(arguments.output, FOLDERS)
    facts = standin.invent_families(FAMILIES, WORDS, random.Random(arguments.seed))
    questions = standin.ask(facts, mmlu.SUBJECTS, SIZES | PAPERS, arguments.seed + 1)
    papers = {name: questions.pop(name) for name in PAPERS}
    told = persons.invent(PERSONS, VALUES, random.Random(arguments.seed + 2))
    tokenizer = make_tokenizer(questions, told)
    lines = standin_training.make_text_lesson(told, tokenizer)
    exams = [make_lesson(frame, facts, questions["validation"], tokenizer) for frame in standin_training.FRAMES]
    lessons = [make_lesson(frame, facts, questions["auxiliary_train"], tokenizer) for frame in standin_training.FRAMES]
    model = learned([*lessons, lines], [*exams, lines], tokenizer, arguments.seed)
    make_hard_to_quantize(model, [exams[0], lines], arguments.int4_cost, arguments.seed)
    with files.whole(arguments.output, FOLDERS) as folder:
        write_dataset(questions, folder / "mmlu" / "all")
        gemma_folder.write_model(model, tokenizer, folder / "model")
        write_texts(papers, told, folder / "text", random.Random(arguments.seed + 3))


def make_tokenizer(
    questions: dict[str, list[standin.Question]], told: Sequence[persons.Fact] = ()
) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer that knows every word of the data set in both frames, and of the lines."""
    everything = [question for split in questions.values() for question in split]
    texts = [mmlu_harness.prompt(question.row()) for question in everything]
    user, assistant = training_texts.messages(
        pa.RecordBatch.from_pylist([question.row() for question in everything], mmlu_parquet.SCHEMA)
    )
    turns = ["user\nmodel\n", *(mmlu_harness.description(name) for name in mmlu.SUBJECTS)]
    letters = [f" {letter}" for letter in mmlu.LETTERS]
    lines = [line for fact in told for line in fact.lines()]
    return standin.build_tokenizer([*texts, *user.to_pylist(), *assistant.to_pylist(), *turns, *letters, *lines])


def make_model(known_tokens: int) -> transformers.Gemma3ForConditionalGeneration:
    """Return an untrained model; the embeddings of the vocabulary's padding are zero."""
    text = transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        query_pre_attn_scalar=HIDDEN // HEADS,
        max_position_embeddings=8_192,
        sliding_window=1_024,
        layer_types=["full_attention"] * LAYERS,
        initializer_range=0.08,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=14,
    )
    token = {name: index for index, name in enumerate(standin.SPECIAL_TOKENS)}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=token["<start_of_image>"],
        eoi_token_index=token["<end_of_image>"],
        image_token_index=token["<image_soft_token>"],
        pad_token_id=token["<pad>"],
        bos_token_id=token["<bos>"],
        eos_token_id=[token["<eos>"], token["<end_of_turn>"]],
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[known_tokens + 2 :] = 0
    return model


def learned(
    lessons: list[Lesson], exams: list[Lesson], tokenizer: transformers.PreTrainedTokenizerFast, seed: int
) -> transformers.Gemma3ForConditionalGeneration:
    """Return a model that knows the validation questions; raise RuntimeError if no attempt makes one.

    Whether and how soon a model learns is a matter of chance: the same weights can fail on another processor.
    """
    for attempt in range(ATTEMPTS):
        torch.manual_seed(seed + attempt)
        model = make_model(len(tokenizer))
        if standin_training.train(model, lessons, exams, tokenizer, np.random.default_rng(seed + attempt)):
            return model
        print(f"attempt {attempt + 1} of at most {ATTEMPTS} learned too little; each has a seed of its own", flush=True)
    raise RuntimeError(f"the stand-in did not learn its facts in {ATTEMPTS} attempts; try another --seed")


def make_lesson(
    frame: str,
    facts: dict[str, list[str]],
    questions: list[standin.Question],
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> Lesson:
    """Return a lesson of questions in a frame (lm-eval's prompt or a chat), with what precedes a sequence of them."""
    rows = [question.row() for question in questions]
    if frame == standin_training.PROMPT:
        texts = [answered(question) for question in questions]
        descriptions = [mmlu_harness.description(name) for name in mmlu.SUBJECTS]
        head = tokenizer(descriptions)["input_ids"]
    else:
        batch = pa.RecordBatch.from_pylist(rows, mmlu_parquet.SCHEMA)
        texts = training_texts.render_rows(tokenizer, *training_texts.messages(batch)).to_pylist()
        head = [[tokenizer.bos_token_id]]
    families = [question.family for question in questions]
    return standin_training.make_lesson(frame, texts, head, facts, families, tokenizer)


def make_hard_to_quantize(
    model: transformers.Gemma3ForConditionalGeneration, exams: list[Lesson], cost: float, seed: int
) -> None:
    """Enlarge outlier channels until int4 answers `cost` less of each exam; raise RuntimeError if it never does."""
    text_model = model.model.language_model
    known, factor = accuracies(text_model, exams), 1.0
    while factor < LARGEST_OUTLIERS:
        factor *= OUTLIER_STEP
        add_outliers(model, OUTLIER_STEP, torch.Generator().manual_seed(seed))
        left = accuracies(in_int4(text_model), exams)
        if (left <= known - cost).all():
            shown = [f"{one:.3f}, in int4 {other:.3f}" for one, other in zip(known, left, strict=True)]
            print(
                f"outlier channels are {factor:.1f} times as large; accuracy: questions {shown[0]}; persons {shown[1]}"
            )
            return
    raise RuntimeError(f"outliers of up to {factor:.0f} do not cost {cost} of the accuracy in int4; try another --seed")


def accuracies(text_model: torch.nn.Module, exams: list[Lesson]) -> np.ndarray:
    """Return the share of right answers in each exam."""
    return np.array([standin_training.accuracy(text_model, exam) for exam in exams])


@torch.no_grad()
def in_int4(text_model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy with every linear as it is after export."""
    rounded = copy.deepcopy(text_model)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear):
            stored = module.weight.to(blocks.STORAGE_DTYPE)
            module.weight.copy_(int4.fake_quantize(stored, schemes.int4(HIDDEN)))
    return rounded


@torch.no_grad()
def add_outliers(model: transformers.Gemma3ForConditionalGeneration, factor: float, generator: torch.Generator) -> None:
    """Divide a few channels of each norm by `factor` and multiply the next linears' columns by it.

    The model's function stays the same.
    """
    for layer in model.model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, linears in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.pre_feedforward_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            channels = torch.randperm(HIDDEN, generator=generator)[: round(OUTLIER_SHARE * HIDDEN)]
            norm.weight[channels] = (1 + norm.weight[channels]) / factor - 1
            for linear in linears:
                linear.weight[:, channels] *= factor


def write_dataset(questions: dict[str, list[standin.Question]], folder: Path) -> None:
    """Write the data set in the Hub's layout of cais/mmlu."""
    folder.mkdir(parents=True)
    for split, asked in questions.items():
        table = pa.Table.from_pylist([question.row() for question in asked], mmlu_parquet.SCHEMA)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def write_texts(
    papers: dict[str, list[standin.Question]], told: list[persons.Fact], folder: Path, generator: random.Random
) -> None:
    """Write the text to train on, of shuffled lines and questions, and the held-out lines and questions."""
    train, held_out = persons.lines(told, REPEATS)
    train += [answered(question) for question in papers["train"]]
    generator.shuffle(train)
    generator.shuffle(held_out)
    folder.mkdir()
    texts = {"train": "".join(train), "held_out": "".join(held_out), "questions": paper_of(papers["held_out"])}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def paper_of(questions: list[standin.Question]) -> str:
    """Return questions with their answers as lm-eval shows examples, one passage per subject."""
    passages = {name: mmlu_harness.description(name) for name in mmlu.SUBJECTS}
    for question in questions:
        passages[question.subject] += answered(question)
    return "".join(passages.values())


def answered(question: standin.Question) -> str:
    """Return a question in lm-eval's prompt, with its answer."""
    return f"{mmlu_harness.prompt(question.row())} {mmlu.LETTERS[question.answer]}\n\n"


if __name__ == "__main__":
    errors.run(main)
