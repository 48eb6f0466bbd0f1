"""Score the choices of questions from the logits that predict their tokens, and read examples once.

lm-eval's HFLM computes logits for every position and reads only the last ones. For 8 questions of 500 tokens and
Gemma's vocabulary of 262,208, that takes 4 GB in fp32. HFLM also re-runs the few-shot examples of a subject for every
question, and for every choice of several tokens, and short questions leave most of a GPU idle. `LastPosition` avoids
all of these, and reads as many tokens at once as `batch_size` questions of QUESTION tokens have; what texts share does
not count. Its log-softmax is the same as HFLM's.

This is correct if a token's state depends only on the tokens before it, and if several texts can continue one cache.
`objection` decides by the config alone and lets through only what the tests prove. Every run also compares its first
questions with lm-eval's own code.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from lm_eval.api.instance import Instance
from transformers import PretrainedConfig

from int4_qat.checkpoint import heads
from int4_qat.evaluation import prefix_attention
from int4_qat.evaluation.stock_scores import Scores, StockScores, Tokens, question
from int4_qat.system.errors import InputError

QUESTION = 1024  # tokens
ATTENDED = 16  # times these tokens may be attended to at once; each layer lays the prefix before every question
SHORTEST_PREFIX = 64  # tokens; below that, laying the prefix before each question costs more than it saves
SAVED = 2048  # tokens; a prompt is read apart from its choices, by one more pass, if that saves as many
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
CHECKED_AT_ONCE = 4  # rows of them, since that code has logits for all positions
# The largest allowed difference from lm-eval's log-likelihood, relative to it, or in nats if it is below one nat.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.5}


class LastPosition(StockScores):
    """An engine that computes the same scores from the last position's logits alone; common prefixes are read once."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        tolerance = TOLERANCES[self.model.dtype]
        self.head = heads.Head(self.model)
        self.stock_check = {"questions": 0, "largest_difference": 0.0, "tolerance": tolerance}

    def check_subject(self, requests: list[Instance], tokens: list[Tokens], scores: Scores) -> None:
        """Score the subject's first questions with lm-eval's own code too; raise InputError if the results differ."""
        super().check_subject(requests, tokens, scores)
        check = self.stock_check
        by_question = itertools.groupby(range(len(requests)), lambda i: requests[i].doc_id)
        groups = [list(group) for _, group in itertools.islice(by_question, CHECKED)]
        asked = list(itertools.chain(*groups))
        with self.rows_at_once(CHECKED_AT_ONCE):
            found = super().score_subject([requests[i] for i in asked], [tokens[i] for i in asked])
        stock = {i: value for i, (value, _) in zip(asked, found, strict=True)}
        for group in groups:
            difference = max(abs(scores[i][0] - stock[i]) / max(1.0, abs(stock[i])) for i in group)
            if difference > check["tolerance"]:
                raise InputError(
                    f"{question(requests[group[0]])}: last_position's log-likelihoods differ from lm-eval's own by "
                    f"{difference:.2g}, more than {check['tolerance']:g}; set its engine to stock"
                )
            check["questions"] += 1
            check["largest_difference"] = max(check["largest_difference"], difference)

    @contextmanager
    def rows_at_once(self, most: int) -> Iterator[None]:
        """Let lm-eval's own code read at most this number of rows at once inside the block."""
        before = self.batch_size_per_gpu
        self.batch_size_per_gpu = min(before, most)
        try:
            yield
        finally:
            self.batch_size_per_gpu = before

    @torch.no_grad()
    def score_subject(self, requests: list[Instance], tokens: list[Tokens]) -> Scores:
        asked: dict[tuple, set[tuple]] = {}  # choices, by the text that is read for them
        keys = [self.key(*pair) for pair in tokens]
        for read, choice in keys:
            asked.setdefault(read, set()).add(choice)
        begun = []
        for prefix, texts in families(asked):
            cache = self.read(prefix) if prefix else None
            with prefix_attention.chosen(self.model, cache):
                for batch in batches(texts, self.batch_size * QUESTION, len(prefix)):
                    pairs = [(row, choice) for row, read in enumerate(batch) for choice in sorted(asked[read])]
                    states, numbers = self.last_states([read[len(prefix) :] for read in batch], pairs, cache)
                    following = [token for _, choice in pairs for token in choice]
                    begun.append((batch, pairs, *self.chances(states, numbers, following)))
        scores = {}
        for batch, pairs, *found in begun:
            values, likeliest = (tensor.tolist() for tensor in found)  # waits for the GPU, which has all batches by now
            end = 0
            for row, choice in pairs:
                begin, end = end, end + len(choice)
                scores[batch[row], choice] = sum(values[begin:end]), likeliest[begin:end] == list(choice)
        return [scores[key] for key in keys]

    def key(self, prompt: list[int], choice: list[int]) -> tuple[tuple, tuple]:
        """Return what is read for a choice, which ends before its last token and fits the context, and the choice."""
        return tuple([*prompt, *choice][-self.max_length - 1 : -1]), tuple(choice)

    def read(self, prefix: tuple[int, ...]):
        """Return the model's cache after the tokens that several texts share."""
        read = self.model(self.moved([prefix]), use_cache=True, logits_to_keep=1).past_key_values
        return prefix_attention.SharedPrefix(read.layers)

    def moved(self, values: list) -> torch.Tensor:
        """Return numbers on the model's device, without waiting for work that is pending on a GPU."""
        made = torch.tensor(values)
        return made.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else made

    def last_states(
        self, rows: list[tuple[int, ...]], pairs: list[tuple[int, tuple]], cache
    ) -> tuple[torch.Tensor, list[int]]:
        """Return the states (places, width) that predict tokens of choices, and the number of each token's state.

        No token sees the padding on the right.
        """
        longest = max(map(len, rows))
        tokens = self.moved([[*row, *[0] * (longest - len(row))] for row in rows])
        past = {"past_key_values": cache, "use_cache": cache is not None}
        states = self.model.base_model(input_ids=tokens, **past).last_hidden_state
        places = [
            (row, place) for row, choice in pairs for place in range(len(rows[row]) - len(choice), len(rows[row]))
        ]
        numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
        return states[*self.moved(list(numbers)).T], [numbers[place] for place in places]

    def chances(
        self, states: torch.Tensor, numbers: list[int], following: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability of each token after the state with its number, and the likeliest token there."""
        values, likeliest = torch.empty(len(following), dtype=self.softmax_dtype, device=self.device), []
        for block in heads.blocks(len(states), self.head.vocabulary):
            logits = self.head.logits(states[block])
            inside = [index for index, number in enumerate(numbers) if block.start <= number < block.stop]
            asked = [(numbers[index] - block.start, following[index]) for index in inside]
            values[self.moved(inside)] = logits.log_softmax(-1, dtype=self.softmax_dtype)[*self.moved(asked).T]
            likeliest.append(logits.argmax(-1))
        return values, torch.cat(likeliest)[self.moved(numbers)]


def batches(prompts: list[tuple[int, ...]], tokens: int, shared: int = 0) -> Iterator[list[tuple[int, ...]]]:
    """Yield prompts, which come longest first, in batches of at most `tokens` tokens, padding included.

    Their first `shared` tokens have been read. With them, a batch has at most ATTENDED times as many tokens.
    """
    while prompts:
        longest = len(prompts[0])
        size = max(1, min(tokens // (longest - shared), ATTENDED * tokens // longest))
        yield prompts[:size]
        prompts = prompts[size:]


def families(asked: dict[tuple, set[tuple]]) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Return texts, longest first, in groups, each with the prefix that its texts share, which can be empty.

    `asked` has the choices for which each text is read. A subject's questions can share their examples. Otherwise the
    choices of a question can share its prompt, which can have examples of its own.
    """
    prompts = {read: read[: len(read) - max(map(len, choices))] for read, choices in asked.items()}
    prefix = common_prefix(list(asked), min(map(len, prompts.values())))
    by_prompt: dict[tuple, list[tuple]] = {}
    for read, prompt in prompts.items():
        by_prompt.setdefault(prompt, []).append(read)
    saved = {prompt: (len(read) - 1) * len(prompt) for prompt, read in by_prompt.items()}
    apart = {prompt: read for prompt, read in by_prompt.items() if saved[prompt] >= SAVED}
    if not apart or (len(asked) - 1) * len(prefix) >= sum(saved[prompt] for prompt in apart):
        return [(prefix, in_order(asked))]
    rest = set(asked).difference(*apart.values())
    return [((), in_order(rest)), *((prompt, in_order(read)) for prompt, read in apart.items())]


def in_order(texts: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return texts in the order in which they are read, longest first."""
    return sorted(texts, key=lambda read: (-len(read), read))


def common_prefix(texts: list[tuple[int, ...]], most: int) -> tuple[int, ...]:
    """Return the tokens with which all texts begin, at most `most` of them, if they are worth sharing."""
    first, last = min(texts), max(texts)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    prefix = first[: min(len(list(same)), most)]
    return prefix if len(prefix) >= SHORTEST_PREFIX and len(texts) > 1 else ()


def objection(config: PretrainedConfig) -> str | None:
    """Return why LastPosition must not score a model, or None."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    if config.model_type not in MODEL_TYPES:
        return f"it is not proven for model_type '{config.model_type}'"
    if others := sorted(layers - set(LAYER_TYPES)):
        return f"its cache is not proven for layers of type '{others[0]}'"
    if others := sorted(rope_types(text) - set(ROPE_TYPES)):
        return f"positions scaled by '{others[0]}' may depend on the length of a text"
    if getattr(text, "use_bidirectional_attention", None) not in BIDIRECTIONAL:
        return "a token's state depends on those after it (use_bidirectional_attention)"
    return None


def rope_types(config: PretrainedConfig) -> set[str]:
    """Return the ways in which positions are scaled, over all types of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    return {group["rope_type"] for group in [parameters, *by_layer] if "rope_type" in group}
