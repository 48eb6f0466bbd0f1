"""How lm-eval's multiple-choice questions are scored: stock, or only what is read of each forward pass.

lm-eval's HFLM computes the logits of every position to read those of the last one: for a batch of 8 questions of 500
tokens and Gemma's 262,208 words, 4 GB in fp32. It also reads the few-shot examples of a subject again with every
question. `LastPosition` does neither; batches, order and log-softmax are HFLM's.
"""

import argparse
import copy
import itertools

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from int4_qat import models, tokenization

SEED = 1234
SHORTEST_PREFIX = 64  # tokens; below that, copying the cache costs more than it saves
Scores = list[tuple[float, bool]]  # log-likelihood of a choice, and whether it is the likeliest token


class SubjectBatches(HFLM):
    """Stock scores in batches of one subject each, so that none depends on which subjects share a shard."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Scores:
        scores = []
        with tqdm(total=len(requests), desc="score", unit=" choices", mininterval=1, disable=disable_tqdm) as progress:
            for _, group in itertools.groupby(requests, key=lambda request: request.task_name):
                subject = list(group)
                scores += self.score_subject(subject)
                progress.update(len(subject))
        return scores

    def score_subject(self, requests: list[Instance]) -> Scores:
        return super().loglikelihood(requests, disable_tqdm=True)


class LastPosition(SubjectBatches):
    """The same scores from the last position's logits alone, with the subject's common prefix read once."""

    @torch.no_grad()
    def score_subject(self, requests: list[Instance]) -> Scores:
        pairs = [self._encode_pair(*request.args) for request in requests]
        if any(len(choice) != 1 for _, choice in pairs):
            print(f"{requests[0].task_name}: a choice has several tokens, scored by lm-eval's own code", flush=True)
            return super().score_subject(requests)
        choices: dict[tuple, list[int]] = {}
        for context, (choice,) in pairs:
            choices.setdefault(tuple(context[-self.max_length :]), []).append(choice)
        contexts = sorted(choices, key=lambda context: (-len(context), context))
        prefix = common_prefix(contexts)
        cache = self.read(prefix) if prefix else None
        scores = {}
        for start in range(0, len(contexts), self.batch_size):
            batch = contexts[start : start + self.batch_size]
            logits = self.last_logits([context[len(prefix) :] for context in batch], cache)
            log_probabilities = logits.log_softmax(-1, dtype=self.softmax_dtype)
            likeliest = logits.argmax(-1).tolist()
            for row, context in enumerate(batch):
                asked = sorted(set(choices[context]))
                found = log_probabilities[row, asked].tolist()
                answers = zip(asked, found, strict=True)
                scores |= {(context, choice): (value, choice == likeliest[row]) for choice, value in answers}
        return [scores[tuple(context[-self.max_length :]), choice] for context, (choice,) in pairs]

    def read(self, prefix: tuple[int, ...]):
        """The model's cache after the tokens that all questions share."""
        tokens = torch.tensor([prefix], device=self.device)
        return self.model(tokens, use_cache=True, logits_to_keep=1).past_key_values

    def last_logits(self, rows: list[tuple[int, ...]], cache) -> torch.Tensor:
        """Logits (rows, vocabulary) after each row's last token; pads stand to the right, where nobody looks."""
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=self.device)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        ends, place = torch.unique(lengths - 1, return_inverse=True)
        past = {}
        if cache is not None:
            past = {"past_key_values": copy.deepcopy(cache), "use_cache": True}
            past["past_key_values"].batch_repeat_interleave(len(rows))
        logits = self.model(tokens, logits_to_keep=ends, **past).logits
        return logits[torch.arange(len(rows), device=self.device), place]


def common_prefix(contexts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens with which all contexts begin, if they are worth sharing; each keeps a token of its own."""
    first, last = min(contexts), max(contexts)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    prefix = first[: min(len(list(same)), min(map(len, contexts)) - 1)]
    return prefix if len(prefix) >= SHORTEST_PREFIX and len(contexts) > 1 else ()


ENGINES = {"stock": SubjectBatches, "last_position": LastPosition}


def evaluate(arguments: argparse.Namespace, engine: str, tasks: list, task_manager: TaskManager) -> dict:
    """lm-eval's results and samples of a checkpoint: --checkpoint, --dtype, --device, --num-fewshot, --limit and so on.

    `tasks` are lm-eval's names or task configs.
    """
    language_model = ENGINES[engine](
        pretrained=models.load_model(arguments.checkpoint, models.DTYPES[arguments.dtype], arguments.device),
        tokenizer=tokenization.load_tokenizer(arguments.checkpoint),
        batch_size=arguments.batch_size,
        softmax_dtype=torch.float32,
    )
    return lm_eval.simple_evaluate(
        language_model,
        tasks=tasks,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        task_manager=task_manager,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )
