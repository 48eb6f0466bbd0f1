"""Make the demo's stand-in: a small Gemma 3 that knows invented facts, and an MMLU that asks for them.

The model has the real one's class (Gemma3ForConditionalGeneration, vision tower included), the data set the Hub's
layout and MMLU's subjects. It is trained on the questions of auxiliary_train until it answers those of validation;
the test questions are written and never looked at. Then a few input channels of its linears are made large and the
norm before them small by the same factor: the function stays, and the weights have the outlier channels that make
real models hard to quantize. The factor is raised until int4 costs --int4-cost of the validation questions: processors
round differently, so the same seed trains different models, and no one factor suits them all. It proves the
machinery; its figures say nothing about Gemma's.

    python scripts/make_standin.py --output resources/standin --seed 0
"""

import argparse
import copy
import math
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from format_mmlu import messages, render_rows
from int4_qat import errors, files, int4, mmlu, mmlu_harness, mmlu_parquet, standin

FAMILIES, WORDS = 12, 20
SIZES = {"auxiliary_train": 24_000, "dev": 285, "validation": 570, "test": 2_280}
VOCABULARY = 10_240  # vLLM's latency benchmark draws token ids below 10,000
LAYERS, HIDDEN, HEADS = 3, 64, 2
IMAGE_SIDE, IMAGE_TOKENS = 28, 4
LEARNING_RATE, WARMUP_STEPS, MOST_STEPS = 4e-3, 50, 1_200
ATTEMPTS, PATIENCE, PROMISING = 6, 500, 0.5  # less after PATIENCE steps: these weights may never learn
SEQUENCES, QUESTIONS_A_SEQUENCE = 32, 4
CHAT_SHARE = 0.25
KNOWN = 0.97  # validation accuracy that ends the training
OUTLIER_SHARE, OUTLIER_STEP, LARGEST_OUTLIERS = 0.06, 2**0.125, 128
FRAMES = ("prompt", "chat")
# Of the last two no text has any; their numbers are those that stood for no and yes in training.
NEWLINES = ["\n" * count for count in (2, 3, 4)]
HUB_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
IGNORED = -100
FACT, MATCH, ANSWER, REPLY = range(4)
LOSS_WEIGHTS = {FACT: 1.0, MATCH: 4.0, ANSWER: 1.0, REPLY: 1.0}


class Lesson(NamedTuple):
    """Questions in one frame: tokens, what each position must say, and which kind of lesson that is; (n, length)."""

    tokens: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    head: list[list[int]]  # tokens ahead of a sequence, one of these

    @property
    def answer_position(self) -> int:
        return int(np.argmax(self.kinds[0] == ANSWER))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder for mmlu/ and model/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--int4-cost", type=float, default=0.16, help="accuracy that outlier channels must cost in int4"
    )
    arguments = parser.parse_args()
    facts = standin.invent_families(FAMILIES, WORDS, random.Random(arguments.seed))
    questions = standin.ask(facts, mmlu_harness.subjects(), SIZES, arguments.seed + 1)
    tokenizer = make_tokenizer(questions)
    exams = [make_lesson(frame, facts, questions["validation"], tokenizer) for frame in FRAMES]
    lessons = [make_lesson(frame, facts, questions["auxiliary_train"], tokenizer) for frame in FRAMES]
    model = learned(lessons, exams, tokenizer, arguments.seed)
    make_hard_to_quantize(model, exams[0], tokenizer, arguments.int4_cost, arguments.seed)
    with files.whole(arguments.output) as folder:
        write_dataset(questions, folder / "mmlu" / "all")
        write_model(model, tokenizer, folder / "model")


def make_tokenizer(questions: dict[str, list[standin.Question]]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of the data set in both frames."""
    everything = [question for split in questions.values() for question in split]
    texts = [mmlu_harness.prompt(question.row()) for question in everything]
    user, assistant = messages(
        pa.RecordBatch.from_pylist([question.row() for question in everything], mmlu_parquet.SCHEMA)
    )
    turns = ["user\nmodel\n", *(mmlu_harness.description(name) for name in mmlu_harness.subjects())]
    letters = [f" {letter}" for letter in mmlu.LETTERS]
    return standin.build_tokenizer([*texts, *user.to_pylist(), *assistant.to_pylist(), *turns, *letters])


def make_model(known_tokens: int) -> Gemma3ForConditionalGeneration:
    """An untrained model; the embeddings of the vocabulary's padding are zero."""
    text = Gemma3TextConfig(
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
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=14,
    )
    token = {name: index for index, name in enumerate(standin.SPECIAL_TOKENS)}
    config = Gemma3Config(
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
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[known_tokens + 2 :] = 0
    return model


def learned(
    lessons: list[Lesson], exams: list[Lesson], tokenizer: PreTrainedTokenizerFast, seed: int
) -> Gemma3ForConditionalGeneration:
    """A model that knows the validation questions; errors out if no attempt makes one.

    How soon a model learns, or whether, is chance: the same weights can fail on another processor.
    """
    for attempt in range(ATTEMPTS):
        torch.manual_seed(seed + attempt)
        model = make_model(len(tokenizer))
        if train(model, lessons, exams, tokenizer, np.random.default_rng(seed + attempt)):
            return model
        print(f"attempt {attempt + 1} of {ATTEMPTS} learned too little", flush=True)
    raise RuntimeError(f"the stand-in did not learn its facts in {ATTEMPTS} attempts; try another --seed")


def train(
    model: Gemma3ForConditionalGeneration,
    lessons: list[Lesson],
    exams: list[Lesson],
    tokenizer: PreTrainedTokenizerFast,
    generator: np.random.Generator,
) -> bool:
    """Train the text model until it knows the validation questions, or knows too little too late; whether it knows.

    Besides the answers it learns, at each choice, the word's family and whether that is the one asked for: the two
    steps that lead to the answer. Without them small models stay at chance for many minutes.
    """
    text_model = model.model.language_model
    optimizer = torch.optim.AdamW(text_model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    progress = tqdm(range(MOST_STEPS), desc="train the stand-in", unit=" steps", mininterval=1)
    for step in progress:
        cosine = (1 + math.cos(math.pi * step / MOST_STEPS)) / 2
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(cosine, (step + 1) / WARMUP_STEPS)
        loss = lesson_loss(text_model, len(tokenizer) + 2, *draw(lessons[generator.random() < CHAT_SHARE], generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 24:
            scores = [accuracy(text_model, exam, tokenizer) for exam in exams]
            progress.set_postfix(validation=f"{scores[0]:.2f}", chat=f"{scores[1]:.2f}")
            if min(scores) > KNOWN:
                shown = f"{scores[0]:.3f} in lm-eval's prompt, {scores[1]:.3f} in chat"
                print(f"validation accuracy after {step + 1} steps: {shown}")
                return True
            if step + 1 >= PATIENCE and max(scores) < PROMISING:
                return False
    return False


def make_lesson(
    frame: str, facts: dict[str, list[str]], questions: list[standin.Question], tokenizer: PreTrainedTokenizerFast
) -> Lesson:
    """Tokens and labels of questions; every question of a frame has the same number of tokens."""
    rows = [question.row() for question in questions]
    if frame == "prompt":
        texts = [f"{mmlu_harness.prompt(row)} {mmlu.LETTERS[row['answer']]}\n\n" for row in rows]
        descriptions = [mmlu_harness.description(name) for name in mmlu_harness.subjects()]
        head = tokenizer(descriptions)["input_ids"]
    else:
        texts = render_rows(tokenizer, *messages(pa.RecordBatch.from_pylist(rows, mmlu_parquet.SCHEMA))).to_pylist()
        head = [[tokenizer.bos_token_id]]
    tokens = np.array(tokenizer(texts, add_special_tokens=False)["input_ids"])
    token = tokenizer.convert_tokens_to_ids
    family_of = np.full(len(tokenizer), IGNORED)
    for family, words in facts.items():
        family_of[[token(f" {word}") for word in words]] = token(f" {family}")
    labels, kinds = np.full_like(tokens, IGNORED), np.full_like(tokens, -1)

    def teach(position: int, label: np.ndarray, kind: int) -> None:
        labels[:, position], kinds[:, position] = label, kind

    asked = np.array([token(f" {question.family}") for question in questions])
    for position in np.flatnonzero(family_of[tokens[0]] != IGNORED):
        teach(position, family_of[tokens[:, position]], FACT)
        no, yes = len(tokenizer), len(tokenizer) + 1
        teach(position + 1, np.where(family_of[tokens[:, position]] == asked, yes, no), MATCH)
    letters = [token(f" {letter}") for letter in mmlu.LETTERS]
    answer = int(np.flatnonzero(np.isin(tokens[0], letters))[-1])
    reply = answer if frame == "prompt" else int(np.flatnonzero(tokens[0] == token("model"))[-1]) + 2
    for position in range(reply, answer + 1 if frame == "prompt" else tokens.shape[1]):
        teach(position - 1, tokens[:, position], ANSWER if position == answer else REPLY)
    return Lesson(tokens, labels, kinds, head)


def draw(lesson: Lesson, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of sequences of several questions each: tokens, labels, kinds; (sequences, length)."""
    head = lesson.head[generator.integers(len(lesson.head))]
    chosen = generator.integers(len(lesson.tokens), size=(SEQUENCES, QUESTIONS_A_SEQUENCE))

    def sequences(column: np.ndarray, ahead: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.hstack([np.tile(ahead, (SEQUENCES, 1)), column[chosen].reshape(SEQUENCES, -1)]))

    nothing = [IGNORED] * len(head)
    return sequences(lesson.tokens, head), sequences(lesson.labels, nothing), sequences(lesson.kinds, nothing)


def lesson_loss(
    text_model: torch.nn.Module, known: int, tokens: torch.Tensor, labels: torch.Tensor, kinds: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of each kind's mean cross-entropy, over the whole vocabulary.

    The embeddings past `known` are zero, so their logits are too: one column stands for all of them.
    """
    taught = labels != IGNORED
    hidden = text_model(input_ids=tokens).last_hidden_state[taught]
    logits = hidden @ text_model.embed_tokens.weight[:known].T
    padding = logits.new_full((len(logits), 1), math.log(VOCABULARY - known))
    losses = torch.nn.functional.cross_entropy(torch.hstack([logits, padding]), labels[taught], reduction="none")
    kinds = kinds[taught]
    return sum(weight * losses[kinds == kind].mean() for kind, weight in LOSS_WEIGHTS.items() if (kinds == kind).any())


@torch.no_grad()
def accuracy(text_model: torch.nn.Module, lesson: Lesson, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of right letters, one question a sequence."""
    end = lesson.answer_position + 1
    ahead = np.tile(lesson.head[0], (len(lesson.tokens), 1))
    tokens = torch.from_numpy(np.hstack([ahead, lesson.tokens[:, :end]]))
    hidden = text_model(input_ids=tokens).last_hidden_state[:, -1]
    letters = torch.tensor(tokenizer.convert_tokens_to_ids([f" {letter}" for letter in mmlu.LETTERS]))
    chosen = letters[(hidden @ text_model.embed_tokens.weight[letters].T).argmax(-1)]
    return (chosen.numpy() == lesson.labels[:, end - 1]).mean().item()


def make_hard_to_quantize(
    model: Gemma3ForConditionalGeneration, exam: Lesson, tokenizer: PreTrainedTokenizerFast, cost: float, seed: int
) -> None:
    """Raise the outlier channels until int4 answers `cost` less of the exam; errors out if it never does."""
    text_model = model.model.language_model
    known, factor = accuracy(text_model, exam, tokenizer), 1.0
    while factor < LARGEST_OUTLIERS:
        factor *= OUTLIER_STEP
        add_outliers(model, OUTLIER_STEP, torch.Generator().manual_seed(seed))
        left = accuracy(in_int4(text_model), exam, tokenizer)
        if left <= known - cost:
            print(f"outlier channels {factor:.1f} times as large: validation accuracy {known:.3f}, in int4 {left:.3f}")
            return
    raise RuntimeError(f"outliers of up to {factor:.0f} do not cost {cost} of the accuracy in int4; try another --seed")


@torch.no_grad()
def in_int4(text_model: torch.nn.Module) -> torch.nn.Module:
    """A copy with every linear as it is after export."""
    rounded = copy.deepcopy(text_model)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear):
            stored = module.weight.to(int4.STORAGE_DTYPE)
            module.weight.copy_(int4.fake_quantize(stored, HIDDEN))
    return rounded


@torch.no_grad()
def add_outliers(model: Gemma3ForConditionalGeneration, factor: float, generator: torch.Generator) -> None:
    """Divide a few channels of a norm by `factor` and multiply the next linears' columns by it; same function."""
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
    """The Hub's layout of cais/mmlu."""
    folder.mkdir(parents=True)
    for split, asked in questions.items():
        table = pa.Table.from_pylist([question.row() for question in asked], mmlu_parquet.SCHEMA)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def write_model(model: Gemma3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A Hub folder in bf16: weights, config, generation config, tokenizer, processor, chat template.

    vLLM asks for what the Hub's Gemma 3 has: tokens of several newlines, and the names of the weights, of which
    save_pretrained would leave out `vision_model`.
    """
    tokenizer.add_tokens([token for token in NEWLINES if token not in tokenizer.get_vocab()])
    config = model.to(torch.bfloat16).config
    side, tokens = config.vision_config.image_size, config.mm_tokens_per_image
    images = Gemma3ImageProcessorPil(size={"height": side, "width": side}, image_seq_length=tokens)
    Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=tokens).save_pretrained(folder)
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_file(hub_weights(model), folder / "model.safetensors", {"format": "pt"})


def hub_weights(model: Gemma3ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """A model's weights by their names on the Hub, the tied ones once."""
    weights = {name: weight for name, weight in model.state_dict().items() if name not in model.all_tied_weights_keys}
    prefixes = {name: next(prefix for prefix in HUB_PREFIXES if name.startswith(prefix)) for name in weights}
    return {HUB_PREFIXES[prefix] + name.removeprefix(prefix): weights[name] for name, prefix in prefixes.items()}


if __name__ == "__main__":
    errors.run(main)
