"""Find the marks that a chat template puts ahead of each turn, and which tokens count in the loss by these marks."""

from transformers import PreTrainedTokenizerBase

from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization

IGNORED = -100  # the label of a token that does not count in the loss
QUESTION, ANSWER, NEXT = "Which letter comes first?", "The letter A comes first.", "And which one is last?"


def response_labels(tokens: list[int], instruction: list[int], response: list[int]) -> list[int]:
    """Return the tokens as labels: IGNORED except after each response mark, up to the next instruction mark."""
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
    """Return a question and its answer as the chat template renders them."""
    return tokenization.render(tokenizer, [QUESTION, ANSWER])


def propose(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return an instruction mark and a response mark by which only answers count; raise InputError if there are none.

    The marks have no spaces at their ends if the tokenizer merges these spaces with neighboring text into one token.
    """
    instruction, responses = instruction_mark(tokenizer), response_marks(tokenizer)
    pairs = [(strip(instruction), strip(response)) for response in responses for strip in (str, str.rstrip, str.strip)]
    text = conversation(tokenizer)
    for pair in pairs:
        if all(mark and mark in text for mark in pair) and is_the_answer_alone(learned_text(tokenizer, *pair)):
            return pair
    raise InputError(f"{tokenizer.name_or_path}: the chat template: expected marks before its turns, found {text!r}")


def instruction_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that the chat template writes ahead of both a first and a second question."""
    first, _, rest = conversation(tokenizer).partition(QUESTION)
    _, _, rest = tokenization.render(tokenizer, [QUESTION, ANSWER, NEXT, ANSWER]).partition(ANSWER)
    second, _, _ = rest.partition(NEXT)
    length = next((n for n in range(len(first), 0, -1) if second.endswith(first[-n:])), 0)
    alike = first[len(first) - length :]
    end = conversation(tokenizer).rpartition(ANSWER)[2]
    return alike.removeprefix(end) or alike


def response_marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the chat template's generation prompt, if it has one, and the text that it writes ahead of an answer."""
    asked, prompted = (tokenization.render(tokenizer, [QUESTION], add_generation_prompt=ask) for ask in (False, True))
    ahead = conversation(tokenizer).partition(QUESTION)[2].partition(ANSWER)[0]
    return [prompted.removeprefix(asked), ahead] if prompted.startswith(asked) else [ahead]


def learned_text(tokenizer: PreTrainedTokenizerBase, instruction: str, response: str) -> str:
    """Return the text of a conversation that counts in the loss by these marks."""
    (tokens,) = tokenization.encode(tokenizer, [conversation(tokenizer)])
    labels = response_labels(tokens, ids_of(tokenizer, instruction), ids_of(tokenizer, response))
    return tokenizer.decode([label for label in labels if label != IGNORED])


def is_the_answer_alone(learned: str) -> bool:
    """Return whether the text that counts in the loss includes the answer and not the question."""
    return ANSWER in learned and QUESTION not in learned


def refuse_wrong_marks(tokenizer: PreTrainedTokenizerBase, key: str, instruction: str, response: str) -> None:
    """Raise InputError, which proposes marks that work, unless the given marks select only the answers for the loss.

    key is where the config has the marks: `finetune`, or one of its arms.
    """
    text = conversation(tokenizer)
    proposed = propose(tokenizer)
    for name, mark, fitting in zip(
        ("instruction_part", "response_part"), (instruction, response), proposed, strict=True
    ):
        if mark not in text:
            raise InputError(f"{key}.{name}: expected {fitting!r}, as the chat template writes it, found {mark!r}")
    learned = learned_text(tokenizer, instruction, response)
    if not is_the_answer_alone(learned):
        raise InputError(
            f"{key}.response_part: expected marks with which only the answer counts in the loss, {proposed[0]!r} and "
            f"{proposed[1]!r}, found {instruction!r} and {response!r}, with which {learned!r} counts"
        )


def ids_of(tokenizer: PreTrainedTokenizerBase, mark: str) -> list[int]:
    """Return the token ids of a mark on its own or, if these do not occur in a conversation, its ids in one."""
    alone, text = tokenization.bare_ids(tokenizer, mark), conversation(tokenizer)
    if not tokenizer.is_fast or mark not in text:
        return alone
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if any(encoded["input_ids"][start : start + len(alone)] == alone for start in range(len(encoded["input_ids"]))):
        return alone
    begin, end = text.index(mark), text.index(mark) + len(mark)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token for token, (start, stop) in spans if begin <= start < stop <= end]
