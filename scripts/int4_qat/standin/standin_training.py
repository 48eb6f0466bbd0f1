"""Train the stand-in's text model on questions and lines, with a label for what each position must predict."""

import math
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from int4_qat.data import mmlu
from int4_qat.standin.persons import Fact

LEARNING_RATE, WARMUP_STEPS, MOST_STEPS = 4e-3, 50, 1_200
PATIENCE, PROMISING = 500, 0.5  # with less after PATIENCE steps, these weights may never learn
QUESTION_SEQUENCES, QUESTIONS_A_SEQUENCE = 32, 4
LINE_SEQUENCES, LINES_A_SEQUENCE = 8, 12
CHAT_SHARE = 0.25
KNOWN = 0.97  # the training ends when accuracy in each exam is above this
PROMPT, CHAT = FRAMES = ("prompt", "chat")
IGNORED = -100
FACT, MATCH, ANSWER, WORDS = range(4)
LOSS_WEIGHTS = {FACT: 1.0, MATCH: 4.0, ANSWER: 1.0, WORDS: 1.0}


class Lesson(NamedTuple):
    """Questions in one frame, or lines: tokens, the label of each position, and the kind of that label.

    The arrays are (n, length).
    """

    tokens: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    head: list[list[int]]  # one of these token lists is put ahead of a sequence
    answers: list[int]  # token ids of which one is the right answer
    batch: tuple[int, int]  # the number of sequences, and of questions or lines in each

    @property
    def answer_position(self) -> int:
        return int(np.argmax(self.kinds[0] == ANSWER))


def make_lesson(
    frame: str,
    texts: list[str],
    head: list[list[int]],
    facts: dict[str, list[str]],
    families: list[str],
    tokenizer: PreTrainedTokenizerFast,
) -> Lesson:
    """Return a lesson of questions that ask for these families; all questions of a frame have equally many tokens."""
    tokens = np.array(tokenizer(texts, add_special_tokens=False)["input_ids"])
    token = tokenizer.convert_tokens_to_ids
    family_of = np.full(len(tokenizer), IGNORED)
    for family, words in facts.items():
        family_of[[token(f" {word}") for word in words]] = token(f" {family}")
    labels, kinds = np.full_like(tokens, IGNORED), np.full_like(tokens, -1)

    def teach(position: int, label: np.ndarray, kind: int) -> None:
        labels[:, position], kinds[:, position] = label, kind

    asked = np.array([token(f" {family}") for family in families])
    for position in np.flatnonzero(family_of[tokens[0]] != IGNORED):
        teach(position, family_of[tokens[:, position]], FACT)
        no, yes = len(tokenizer), len(tokenizer) + 1
        teach(position + 1, np.where(family_of[tokens[:, position]] == asked, yes, no), MATCH)
    letters = [token(f" {letter}") for letter in mmlu.LETTERS]
    answer = int(np.flatnonzero(np.isin(tokens[0], letters))[-1])
    reply = answer if frame == PROMPT else int(np.flatnonzero(tokens[0] == token("model"))[-1]) + 2
    for position in range(reply, answer + 1 if frame == PROMPT else tokens.shape[1]):
        teach(position - 1, tokens[:, position], ANSWER if position == answer else WORDS)
    return Lesson(tokens, labels, kinds, head, letters, (QUESTION_SEQUENCES, QUESTIONS_A_SEQUENCE))


def make_text_lesson(told: list[Fact], tokenizer: PreTrainedTokenizerFast) -> Lesson:
    """Return a lesson of facts in each of their frames; labels are the next tokens, and the answer is the value."""
    lines = [line for fact in told for line in fact.lines()]
    tokens = np.array(tokenizer(lines, add_special_tokens=False)["input_ids"])
    labels = np.roll(tokens, -1, axis=1)
    labels[:, -1] = IGNORED
    answers = tokenizer.convert_tokens_to_ids(sorted({f" {fact.value}" for fact in told}))
    kinds = np.where(np.isin(labels, answers), ANSWER, WORDS)
    return Lesson(tokens, labels, kinds, [[tokenizer.bos_token_id]], answers, (LINE_SEQUENCES, LINES_A_SEQUENCE))


def train(
    model: Gemma3ForConditionalGeneration,
    lessons: list[Lesson],
    exams: list[Lesson],
    tokenizer: PreTrainedTokenizerFast,
    generator: np.random.Generator,
) -> bool:
    """Train the text model until it knows the exams, or knows too little of the questions too late.

    Return whether it knows the exams. Besides the answers, the model learns at each choice the word's family and
    whether that is the one asked for: the two steps that lead to the answer. Without them, small models stay at chance
    for many minutes.
    """
    text_model = model.model.language_model
    optimizer = torch.optim.AdamW(text_model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    progress = tqdm(range(MOST_STEPS), desc="train the stand-in", unit=" steps", mininterval=1)
    for step in progress:
        cosine = (1 + math.cos(math.pi * step / MOST_STEPS)) / 2
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(cosine, (step + 1) / WARMUP_STEPS)
        # Lines are in every step: they take few sequences, and separate steps would be at the questions' expense.
        drawn = lessons[generator.random() < CHAT_SHARE], lessons[-1]
        loss = sum(lesson_loss(text_model, len(tokenizer) + 2, *draw(lesson, generator)) for lesson in drawn)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 24:
            scores = [accuracy(text_model, exam) for exam in exams]
            known = f"questions {scores[0]:.2f}, in chat {scores[1]:.2f}, persons {scores[2]:.2f}"
            progress.set_postfix_str(f"share known: {known}; ends when all exceed {KNOWN}")
            if min(scores) > KNOWN:
                shown = f"{scores[0]:.3f} in lm-eval's prompt, {scores[1]:.3f} in chat, of persons {scores[2]:.3f}"
                print(f"validation accuracy after {step + 1} steps: {shown}")
                return True
            if step + 1 >= PATIENCE and max(scores[:2]) < PROMISING:
                return False
    return False


def draw(lesson: Lesson, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens, labels and kinds (sequences, length) of a batch with several questions or lines per sequence."""
    head = lesson.head[generator.integers(len(lesson.head))]
    chosen = generator.integers(len(lesson.tokens), size=lesson.batch)
    sequences = len(chosen)

    def joined(column: np.ndarray, ahead: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.hstack([np.tile(ahead, (sequences, 1)), column[chosen].reshape(sequences, -1)]))

    nothing = [IGNORED] * len(head)
    return joined(lesson.tokens, head), joined(lesson.labels, nothing), joined(lesson.kinds, nothing)


def lesson_loss(
    text_model: torch.nn.Module, known: int, tokens: torch.Tensor, labels: torch.Tensor, kinds: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of each kind's mean cross-entropy, over the whole vocabulary.

    The embeddings past `known` are zero, so their logits are zero too: one column represents all of them.
    """
    taught = labels != IGNORED
    hidden = text_model(input_ids=tokens).last_hidden_state[taught]
    logits = hidden @ text_model.embed_tokens.weight[:known].T
    padding = logits.new_full((len(logits), 1), math.log(text_model.embed_tokens.num_embeddings - known))
    losses = torch.nn.functional.cross_entropy(torch.hstack([logits, padding]), labels[taught], reduction="none")
    kinds = kinds[taught]
    return sum(weight * losses[kinds == kind].mean() for kind, weight in LOSS_WEIGHTS.items() if (kinds == kind).any())


@torch.no_grad()
def accuracy(text_model: torch.nn.Module, lesson: Lesson) -> float:
    """Return the share of right answers, with one question or line per sequence."""
    end = lesson.answer_position + 1
    ahead = np.tile(lesson.head[0], (len(lesson.tokens), 1))
    tokens = torch.from_numpy(np.hstack([ahead, lesson.tokens[:, :end]]))
    hidden = text_model(input_ids=tokens).last_hidden_state[:, -1]
    answers = torch.tensor(lesson.answers)
    chosen = answers[(hidden @ text_model.embed_tokens.weight[answers].T).argmax(-1)]
    return (chosen.numpy() == lesson.labels[:, end - 1]).mean().item()
