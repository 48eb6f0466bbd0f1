"""The marks that a chat template puts ahead of each turn, and which tokens of a conversation count in the loss."""

from transformers import PreTrainedTokenizerBase

from int4_qat import tokenization
from int4_qat.errors import InputError

IGNORED = -100  # the label of a token that does not count
QUESTION, ANSWER = "Which letter comes first?", "The letter A comes first."


def response_labels(tokens: list[int], instruction: list[int], response: list[int]) -> list[int]:
    """Return the tokens, with IGNORED everywhere but after each response mark up to the next instruction mark."""
    labels, position, learning = [], 0, False
    while position < len(tokens):
        for marker, starts_learning in ((response, True), (instruction, False)):
            if tokens[position : position + len(marker)] == marker:
                labels += [IGNORED] * len(marker)
                learning = starts_learning
                position += len(marker)
                break
        else:
            labels.append(tokens[position] if learning else IGNORED)
            position += 1
    return labels


def conversation(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a question and its answer as the chat template writes them."""
    return tokenization.render(tokenizer, [QUESTION, ANSWER])


def propose(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the instruction mark and the response mark of the chat template.

    They are bare of spaces at their ends if the tokenizer makes one token of those and of what stands beside them.
    """
    written = written_marks(tokenizer)
    candidates = (tuple(strip(mark) for mark in written) for strip in (str, str.rstrip, str.strip))
    return next((marks for marks in candidates if counts_the_answer_alone(tokenizer, *marks)), written)


def written_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the chat template writes ahead of a question and ahead of an answer, read off two turns of each."""
    first, second = (QUESTION, ANSWER), ("And last?", "Z.")
    _, rest = tokenization.render(tokenizer, [*first, *second]).split(first[0], 1)
    before_answer, rest = rest.split(first[1], 1)
    before_question, rest = rest.split(second[0], 1)
    _, end = rest.split(second[1], 1)
    asked, prompted = (tokenization.render(tokenizer, first[:1], add_generation_prompt=ask) for ask in (False, True))
    response = prompted.removeprefix(asked) if prompted.startswith(asked) and prompted != asked else before_answer
    return before_question.removeprefix(end) or before_question, response


def learned_text(tokenizer: PreTrainedTokenizerBase, instruction: str, response: str) -> str:
    """Return what counts in the loss of a conversation by these marks."""
    (tokens,) = tokenization.encode(tokenizer, [conversation(tokenizer)])
    labels = response_labels(tokens, ids_of(tokenizer, instruction), ids_of(tokenizer, response))
    return tokenizer.decode([label for label in labels if label != IGNORED])


def counts_the_answer_alone(tokenizer: PreTrainedTokenizerBase, instruction: str, response: str) -> bool:
    """Return whether by these marks the answer of a conversation counts in the loss, and its question does not."""
    learned = learned_text(tokenizer, instruction, response)
    return ANSWER in learned and QUESTION not in learned


def refuse_wrong_marks(tokenizer: PreTrainedTokenizerBase, key: str, instruction: str, response: str) -> None:
    """Raise InputError, with marks that fit, unless the answers alone count by those of the config.

    key is where the marks stand in the config: `finetune`, or an arm of it.
    """
    text, proposed = conversation(tokenizer), propose(tokenizer)
    for name, mark, fitting in zip(
        ("instruction_part", "response_part"), (instruction, response), proposed, strict=True
    ):
        if mark not in text:
            raise InputError(f"{key}.{name}: expected what the chat template writes, {fitting!r}, found {mark!r}")
    if not counts_the_answer_alone(tokenizer, instruction, response):
        learned = learned_text(tokenizer, instruction, response)
        raise InputError(
            f"{key}.response_part: expected marks by which an answer alone counts in the loss, {proposed[0]!r} and "
            f"{proposed[1]!r}; found {instruction!r} and {response!r}, by which {learned!r} counts"
        )


def ids_of(tokenizer: PreTrainedTokenizerBase, mark: str) -> list[int]:
    """Return the token ids of a mark alone."""
    return tokenizer(mark, add_special_tokens=False)["input_ids"]
