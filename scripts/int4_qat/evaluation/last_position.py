"""Score multiple-choice questions from the logits of the last position alone.

lm-eval's HFLM computes logits for every position and reads only the last ones. For 8 questions of 500 tokens and
Gemma's vocabulary of 262,208, that takes 4 GB in fp32. HFLM also re-runs the few-shot examples of a subject for every
question, and short questions leave most of a GPU idle. `LastPosition` avoids all three, and reads as many tokens at
once as `batch_size` questions of QUESTION tokens have; examples that all questions share do not count. Its log-softmax
is the same as HFLM's.

This is correct if a token's state depends only on the tokens before it, and if several texts can continue one cache.
`objection` decides by the config alone and lets through only what the tests prove. Every run also compares its first
questions with lm-eval's own code.
"""

import itertools
from collections.abc import Iterator

import torch
from lm_eval.api.instance import Instance
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from int4_qat.checkpoint.heads import Head
from int4_qat.data import mmlu
from int4_qat.evaluation import prefix_attention
from int4_qat.evaluation.stock_scores import PROBE, Scores, StockScores, Tokens, question
from int4_qat.system.errors import InputError

QUESTION = 1024  # tokens
ATTENDED = 16  # times these tokens may be attended to at once; each layer lays the prefix before every question
SHORTEST_PREFIX = 64  # tokens; below that, laying the prefix before each question costs more than it saves
# The types that tests/evaluation/test_last_position.py proves. All others are scored by lm-eval's own code.
MODEL_TYPES = (
    *("llama", "qwen2", "qwen3", "mistral", "ministral3", "phi", "phi3", "gemma", "gemma2", "gemma3", "gemma3_text"),
    *("gemma4", "gemma4_text", "olmo", "olmo2", "olmo3", "gpt_neox", "granite", "cohere", "cohere2", "starcoder2"),
    *("stablelm", "glm", "glm4", "smollm3", "exaone4"),
)
LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE_TYPES = ("default", "linear", "llama3", "proportional", "yarn")  # dynamic and longrope depend on a text's length
BIDIRECTIONAL = (None, False, "vision")  # allowed for texts: Gemma 4's `vision` affects only pictures
CHECKED = 2  # questions of each subject that lm-eval's own code scores too
# The largest allowed difference from lm-eval's log-likelihood, relative to it, or in nats if it is below one nat.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.5}


class LastPosition(StockScores):
    """An engine that computes the same scores from the last position's logits alone; common prefixes are read once."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        tolerance = TOLERANCES[self.model.dtype]
        self.stock_check = {"questions": 0, "largest_difference": 0.0, "tolerance": tolerance}

    def score_subject(self, requests: list[Instance], tokens: list[Tokens]) -> Scores:
        for request, (_, choice) in zip(requests, tokens, strict=True):
            if len(choice) != 1:
                found = f"{len(choice)} tokens in '{request.args[1]}'; set its engine to stock"
                raise InputError(f"{question(request)}: expected a choice of one token, found {found}")
        return self.last_scores(tokens)

    def check_subject(self, requests: list[Instance], tokens: list[Tokens], scores: Scores) -> None:
        """Score the subject's first questions with lm-eval's own code too; raise InputError if the results differ."""
        super().check_subject(requests, tokens, scores)
        check = self.stock_check
        for _, group in itertools.islice(
            itertools.groupby(range(len(requests)), lambda i: requests[i].doc_id), CHECKED
        ):
            asked = list(group)
            stock = super().score_subject([requests[i] for i in asked], [tokens[i] for i in asked])
            pairs = [(scores[i][0], value) for i, (value, _) in zip(asked, stock, strict=True)]
            difference = max(abs(ours - value) / max(1.0, abs(value)) for ours, value in pairs)
            if difference > check["tolerance"]:
                raise InputError(
                    f"{question(requests[asked[0]])}: last_position's log-likelihoods differ from lm-eval's own by "
                    f"{difference:.2g}, more than {check['tolerance']:g}; set its engine to stock"
                )
            check["questions"] += 1
            check["largest_difference"] = max(check["largest_difference"], difference)

    @torch.no_grad()
    def last_scores(self, tokens: list[Tokens]) -> Scores:
        """Return the scores of a subject's choices, each of one token."""
        choices: dict[tuple, list[int]] = {}
        for prompt, (choice,) in tokens:
            choices.setdefault(tuple(prompt[-self.max_length :]), []).append(choice)
        prompts = sorted(choices, key=lambda prompt: (-len(prompt), prompt))
        prefix = common_prefix(prompts)
        cache, begun = self.read(prefix) if prefix else None, []
        with prefix_attention.chosen(self.model, cache):
            for batch in batches(prompts, self.batch_size * QUESTION, len(prefix)):
                logits = self.last_logits([prompt[len(prefix) :] for prompt in batch], cache)
                asked = [(row, choice) for row, prompt in enumerate(batch) for choice in sorted(set(choices[prompt]))]
                found = logits.log_softmax(-1, dtype=self.softmax_dtype)[*self.moved(asked).T]
                begun.append((batch, asked, found, logits.argmax(-1)))
        scores = {}
        for batch, asked, found, likeliest in begun:  # the first results wait for the GPU, which has all batches by now
            best = likeliest.tolist()
            for (row, choice), value in zip(asked, found.tolist(), strict=True):
                scores[batch[row], choice] = value, choice == best[row]
        return [scores[tuple(prompt[-self.max_length :]), choice] for prompt, (choice,) in tokens]

    def read(self, prefix: tuple[int, ...]):
        """Return the model's cache after the tokens that all questions share."""
        tokens = torch.tensor([prefix], device=self.device)
        read = self.model(tokens, use_cache=True, logits_to_keep=1).past_key_values
        return prefix_attention.SharedPrefix(read.layers)

    def moved(self, values: list) -> torch.Tensor:
        """Return numbers on the model's device, without waiting for work that is pending on a GPU."""
        made = torch.tensor(values)
        return made.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else made

    def last_logits(self, rows: list[tuple[int, ...]], cache) -> torch.Tensor:
        """Return the logits (rows, vocabulary) after each row's last token; no token sees the padding on the right."""
        longest = max(map(len, rows))
        tokens = self.moved([[*row, *[0] * (longest - len(row))] for row in rows])
        past = {"past_key_values": cache, "use_cache": cache is not None}
        states = self.model.base_model(input_ids=tokens, **past).last_hidden_state
        ends = self.moved([len(row) - 1 for row in rows])
        return Head(self.model).logits(states[torch.arange(len(rows), device=self.device), ends])


def batches(prompts: list[tuple[int, ...]], tokens: int, shared: int = 0) -> Iterator[list[tuple[int, ...]]]:
    """Yield prompts, which come longest first, in batches of at most `tokens` tokens, padding included.

    Their first `shared` tokens have been read. With them, a batch has at most ATTENDED times as many tokens.
    """
    while prompts:
        longest = len(prompts[0])
        size = max(1, min(tokens // (longest - shared), ATTENDED * tokens // longest))
        yield prompts[:size]
        prompts = prompts[size:]


def common_prefix(prompts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the tokens with which all prompts begin, if worth sharing; each prompt keeps at least one of its own."""
    first, last = min(prompts), max(prompts)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    prefix = first[: min(len(list(same)), min(map(len, prompts)) - 1)]
    return prefix if len(prefix) >= SHORTEST_PREFIX and len(prompts) > 1 else ()


def objection(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, letters: tuple[str, ...] = mmlu.LETTERS
) -> str | None:
    """Return why LastPosition must not score a model with choices of these letters, or None.

    Nothing else about the questions counts, so all shards agree.
    """
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    choices = [tokenizer.encode(f"{PROBE} {letter}") for letter in letters]
    if config.model_type not in MODEL_TYPES:
        return f"it is not proven for model_type '{config.model_type}'"
    if others := sorted(layers - set(LAYER_TYPES)):
        return f"its cache is not proven for layers of type '{others[0]}'"
    if others := sorted(rope_types(text) - set(ROPE_TYPES)):
        return f"positions scaled by '{others[0]}' may depend on the length of a text"
    if getattr(text, "use_bidirectional_attention", None) not in BIDIRECTIONAL:
        return "a token's state depends on those after it (use_bidirectional_attention)"
    if any(len(choice) != len(tokenizer.encode(PROBE)) + 1 for choice in choices):
        return "a choice has several tokens"
    return None


def rope_types(config: PretrainedConfig) -> set[str]:
    """Return the ways in which positions are scaled, over all types of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    return {group["rope_type"] for group in [parameters, *by_layer] if "rope_type" in group}
