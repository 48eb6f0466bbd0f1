"""Score with lm-eval's own code in batches of one subject, and check requests before and scores after."""

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from int4_qat.system.errors import InputError

PARALLEL = "TOKENIZERS_PARALLELISM"  # which tokenizers read at each call
STRINGS = 1_000  # strings that are tokenized at once
CUT = "they lose their beginning, bos included"
IN_WINDOWS = "they are read in windows, of which the first alone begins with bos"
SAME = 1e-6  # nats; likelihoods that differ by less are equal
Scores = list[tuple[float, bool]]  # log-likelihood of a choice, and whether it is the likeliest token
Tokens = tuple[list[int], list[int]]  # token ids of a prompt, and of the choice that follows it


class StockScores(HFLM):
    """An HFLM that scores one subject at a time, so that no score depends on which subjects share a shard.

    Prompts that are longer than the model's context lose their beginning, as everywhere in lm-eval, and are counted.
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.prompts_over_max_length: Counter[str] = Counter()  # questions, by task
        self.stock_check: dict | None = None
        self.encoded: dict[str, list[int]] = {}  # token ids of the strings of the subject that is being scored

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Scores:
        scores = self.scores(requests, disable_tqdm)
        refuse_equal(requests, scores)
        say_long(self, requests)
        return scores

    def scores(self, requests: list[Instance], disable_tqdm: bool = False) -> Scores:
        """Return the scores of some requests; each subject is checked separately."""
        scores = []
        with tqdm(total=len(requests), desc="score", unit=" choices", mininterval=1, disable=disable_tqdm) as progress:
            for _, group in itertools.groupby(requests, key=lambda request: request.task_name):
                subject = list(group)
                self.encode_at_once(subject)
                tokens = [self.tokens(request) for request in subject]
                refuse_tokens(subject, tokens, self.max_length)
                self.count_long(subject, [len(prompt) + len(choice) - 1 for prompt, choice in tokens])
                found = self.score_subject(subject, tokens)
                self.check_subject(subject, tokens, found)
                scores += found
                progress.update(len(subject))
        self.encoded = {}  # a whole text (loglikelihood_rolling) needs other tokens
        return scores

    def score_subject(self, requests: list[Instance], tokens: list[Tokens]) -> Scores:
        """Return lm-eval's own scores of a subject's requests."""
        known = [(request.args, *pair) for request, pair in zip(requests, tokens, strict=True)]
        return self._loglikelihood_tokens(known, disable_tqdm=True)

    def check_subject(self, requests: list[Instance], tokens: list[Tokens], scores: Scores) -> None:
        """Raise InputError if a log-likelihood is not finite."""
        refuse_infinite(requests, [value for value, _ in scores])

    def encode_at_once(self, requests: list[Instance]) -> None:
        """Tokenize at once all strings that `_encode_pair` needs; one by one, they take half a minute for MMLU."""
        pairs = (request.args for request in requests)
        strings = {text for prompt, choice in pairs if prompt for text in (prompt + choice, prompt.rstrip())}
        bos = self.tokenizer.decode(self.prefix_token_id)
        plain = sorted(string for string in strings if not string.startswith(bos))
        # The options that HFLM.tok_encode gives the tokenizer for a string that does not begin with bos.
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        self.encoded = {}
        for start in range(0, len(plain), STRINGS):
            strings = plain[start : start + STRINGS]
            with tokenizing_on_all_cores():
                tokens = self.tokenizer(strings, return_attention_mask=False, **special)["input_ids"]
            self.encoded |= dict(zip(strings, tokens, strict=True))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *options, **more) -> list[int]:
        """Return lm-eval's tokens of a string, from `encoded` if it has them."""
        if add_special_tokens is None and not (options or more) and string in self.encoded:
            return self.encoded[string]
        return super().tok_encode(string, add_special_tokens, *options, **more)

    def tokens(self, request: Instance) -> Tokens:
        """Return lm-eval's tokens of a request; an empty prompt becomes the token with which texts begin."""
        prompt, choice = request.args
        if prompt:
            return self._encode_pair(prompt, choice)
        tokens = self.tok_encode(choice, add_special_tokens=False)
        return [self.prefix_token_id], tokens[1:] if tokens[:1] == [self.prefix_token_id] else tokens

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        values = self.rolling_scores(requests, disable_tqdm)
        say_long(self, requests, IN_WINDOWS)
        return values

    def rolling_scores(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return lm-eval's log-likelihoods of whole texts, but with only one bos ahead of each.

        lm-eval puts prefix_token_id, which is bos if there is one, ahead of the tokenizer's tokens, and most tokenizers
        already add a bos. Texts that are longer than the model's context are read in windows, and counted.
        """
        own = self.add_bos_token
        self.add_bos_token = False
        try:
            lengths = [len(self.tok_encode(*request.args)) for request in requests]
            values = super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.add_bos_token = own
        refuse_infinite(requests, values)
        self.count_long(requests, lengths)
        return values

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts = self.continuations(requests, disable_tqdm)
        say_long(self, requests)
        return texts

    def continuations(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return lm-eval's continuations of prompts; raise InputError if one leaves no room for the prompt."""
        lengths = []
        for request in requests:
            prompt, options = request.args
            new = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if new >= self.max_length:
                context = f"the model's context of {self.max_length}"
                raise InputError(f"{request.task_name}: expected fewer new tokens than {context}, found {new}")
            lengths.append(len(self.tok_encode(prompt)) + new)
        self.count_long(requests, lengths)
        return super().generate_until(requests, disable_tqdm)

    def count_long(self, requests: list[Instance], lengths: list[int]) -> None:
        """Count the questions of each task for which the model would have to read more tokens than it can."""
        pairs = zip(requests, lengths, strict=True)
        long = {(request.task_name, request.doc_id) for request, length in pairs if length > self.max_length}
        self.prompts_over_max_length.update(task for task, _ in long)


@contextmanager
def tokenizing_on_all_cores() -> Iterator[None]:
    """Let tokenizers use all cores inside the block.

    A process that is forked while they may would wait forever for threads that only its parent has.
    """
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"
    try:
        yield
    finally:
        os.environ[PARALLEL] = before or "false"


def say_long(language_model: LM, requests: list[Instance], what: str = CUT) -> None:
    """Print in one line how many questions of these requests' tasks were too long, and the consequence."""
    asked = {(request.task_name, request.doc_id) for request in requests}
    counts = language_model.prompts_over_max_length
    if count := sum(counts[task] for task in {task for task, _ in asked}):
        of = f"{count} of {len(asked)} questions"
        context = f"the model's context of {language_model.max_length} tokens"
        print(f"{of} are longer than {context}: {what}", flush=True)


def refuse_tokens(requests: list[Instance], tokens: list[Tokens], max_length: int) -> None:
    """Raise InputError if a choice has no tokens, those of another choice, or more than the model's context holds."""
    known: dict[tuple, tuple] = {}
    for request, (prompt, choice) in zip(requests, tokens, strict=True):
        if not choice:
            raise InputError(f"{question(request)}: expected tokens of the choice '{request.args[1]}', found none")
        if len(choice) > max_length:
            context = f"the model's context of {max_length} tokens"
            raise InputError(f"{question(request)}: expected a choice within {context}, found {len(choice)} tokens")
        other = known.setdefault((request.doc_id, *prompt, *choice), request.args)
        if other != request.args:
            raise InputError(f"{question(request)}: expected different tokens for '{other[1]}' and '{request.args[1]}'")


def refuse_infinite(requests: list[Instance], values: list[float]) -> None:
    """Raise InputError if a log-likelihood is not finite."""
    for request, value in zip(requests, values, strict=True):
        if not math.isfinite(value):
            raise InputError(f"{question(request)}: expected a finite log-likelihood, found {value}")


def refuse_equal(requests: list[Instance], scores: Scores) -> None:
    """Raise InputError if all choices of each question, or all questions, have the same log-likelihoods."""
    questions: dict[tuple, list[float]] = {}
    for request, (value, _) in zip(requests, scores, strict=True):
        questions.setdefault((request.task_name, request.doc_id), []).append(value)
    rows = list(questions.values())
    if len(rows) < 2:
        return
    if all(len(row) > 1 and max(row) - min(row) < SAME for row in rows):
        raise InputError(
            f"accuracy: expected choices with different log-likelihoods, found equal ones in all {len(rows)} questions"
        )
    if len(set(map(len, rows))) == 1 and all(max(column) - min(column) < SAME for column in zip(*rows, strict=True)):
        raise InputError(
            f"accuracy: expected questions with different log-likelihoods, found the same in all {len(rows)}"
        )


def question(request: Instance) -> str:
    """Return a name by which a user finds a question."""
    return f"{request.task_name}, question {request.doc_id}"
