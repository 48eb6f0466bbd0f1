"""Check what every later stage takes for granted about a tokenizer, before the first of them runs.

transformers picks the class of a tokenizer by its configuration, and some classes rebuild the tokenizer without parts
of its file. Spaces and newlines are then lost, and nothing shows it before the scores do.
"""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from int4_qat.data import mmlu
from int4_qat.system import files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, turns

SAMPLE = "def f(x):\n    return 12345 * x\n\n\tA. one  two, don't\n"


def refuse_unusable(folder: Path) -> None:
    """Raise InputError unless the tokenizer of a folder has a chat template, keeps all text and adds at most a bos."""
    tokenizer = tokenization.load_as_is(folder)
    if tokenizer.chat_template is None:
        raise InputError(f"{folder}: the tokenizer: expected a chat template, in chat_template.jinja, found none")
    refuse_lost_messages(folder, tokenizer)
    refuse_another_splitting(folder, tokenizer)
    refuse_lost_text(folder, tokenizer)
    tokenization.refuse_additions(tokenizer)
    refuse_equal_choices(folder, tokenizer)
    tokenization.load_tokenizer(folder)


def refuse_lost_messages(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError unless the chat template shows messages that are texts; some show only lists of parts."""
    text = turns.conversation(tokenizer)
    if turns.QUESTION not in text or turns.ANSWER not in text:
        raise InputError(f"{folder}: the chat template: expected the messages of a conversation, found {text!r:.200}")


def refuse_another_splitting(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError unless the loaded tokenizer splits text as tokenizer.json does, if there is one."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    expected = Tokenizer.from_file(str(path)).encode(SAMPLE, add_special_tokens=False).tokens
    found = tokenizer.convert_ids_to_tokens(tokenization.bare_ids(tokenizer, SAMPLE))
    if found != expected:
        raise InputError(
            f"{path}: expected the tokens {expected[:8]}, found {found[:8]}, since transformers makes a "
            f"{type(tokenizer).__name__} of it{remedy(folder, tokenizer)}"
        )


def remedy(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how to get another class; empty if the model's type determines it, not the tokenizer's config."""
    path = folder / "tokenizer_config.json"
    configured = (files.read_json(path) if path.exists() else {}).get("tokenizer_class") or ""
    if configured.removesuffix("Fast") != type(tokenizer).__name__.removesuffix("Fast"):
        return ""
    return f"; set tokenizer_class in {path} to PreTrainedTokenizerFast"


def refuse_lost_text(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError unless decoding restores the encoded text, up to normalization and one leading space."""
    found = tokenizer.decode(tokenization.bare_ids(tokenizer, SAMPLE), clean_up_tokenization_spaces=False)
    if normalized(tokenizer, found.removeprefix(" ")) != normalized(tokenizer, SAMPLE):
        raise InputError(f"{folder}: the tokenizer: expected {SAMPLE!r} back from its tokens, found {found!r}")


def normalized(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the text as normalized by the tokenizer, or unchanged if the tokenizer has no normalizer."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer.normalize_str(text) if normalizer else text


def refuse_equal_choices(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError unless the answers to a question give different token sequences when they follow it."""
    answered = [tuple(tokenization.bare_ids(tokenizer, f"{tokenization.PROMPT} {letter}")) for letter in mmlu.LETTERS]
    if len(set(answered)) < len(answered):
        raise InputError(f"{folder}: the tokenizer: expected different tokens for {mmlu.LETTERS}, found the same")
