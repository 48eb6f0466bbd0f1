"""Load tokenizers that add the bos of their chat template once, whatever they do by default.

Some tokenizers add a bos to each text, others leave that to the template (Gemma 4's), and some add one that the
template does not write. A model without its bos can answer garbage, and nothing else would report it.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from int4_qat.system.errors import InputError, one_line

PROBE, PROMPT = "a", "Is it one?\nAnswer:"
FIRST, SECOND = "What is one?", "It is a number."  # messages that occur in no template


def load_as_is(folder: Path | str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder as transformers loads it; raise InputError if it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries that read the files raise any kind of error
        reason = one_line(error)[:200]
        raise InputError(f"{folder}: the tokenizer cannot be loaded ({type(error).__name__}: {reason})") from None


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder, which adds the bos of its chat template."""
    return with_bos_of_template(load_as_is(folder))


def with_bos_of_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make a plain call of a tokenizer add the template's bos once, or none if it has none; return the tokenizer.

    A tokenizer without a chat template is left as it is.
    """
    bos = template_bos(tokenizer)
    if tokenizer.chat_template is not None and adds_bos(tokenizer) != bool(bos):
        _set_bos(tokenizer, bos)
    return tokenizer


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a plain call puts the bos ahead of a text."""
    bare, called = bare_ids(tokenizer, PROBE), tokenizer(PROBE)["input_ids"]
    return tokenizer.bos_token_id is not None and called[: len(called) - len(bare)][:1] == [tokenizer.bos_token_id]


def template_bos(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the bos with which the chat template begins a conversation, or None.

    A token that also occurs ahead of an answer is a mark of turns, whatever the tokenizer calls it (SmolLM 2's).
    """
    bos = tokenizer.bos_token
    if tokenizer.chat_template is None or not bos:
        return None
    begin, _, rest = render(tokenizer, [FIRST, SECOND]).partition(FIRST)
    return bos if begin.startswith(bos) and bos not in rest.partition(SECOND)[0] else None


def render(tokenizer: PreTrainedTokenizerBase, contents: Sequence[str], **options) -> str:
    """Return a conversation, the user's message first, as the chat template renders it, its bos included.

    Raise InputError if the template fails on it.
    """
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(contents)]
    return render_messages(tokenizer, messages, tokenizer.name_or_path, **options)


def render_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], where: Path | str, **options
) -> str:
    """Return messages, which have their roles, as the chat template renders them, its bos included.

    Raise InputError, which says where the messages are, if the template fails on them.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (jinja2.TemplateError, ValueError) as error:
        raise InputError(f"{where}: the chat template fails on a conversation ({one_line(error)})") from None


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options) -> list[list[int]]:
    """Return the token ids of texts that a template rendered; a leading bos counts once, whether written or added."""
    bos = template_bos(tokenizer) or ""
    return tokenizer([text.removeprefix(bos) for text in texts], **options)["input_ids"]


def bare_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text without special tokens around it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def refuse_additions(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a plain call adds more than a bos to a prompt, since a model is to continue the prompt."""
    bare, called = bare_ids(tokenizer, PROMPT), tokenizer(PROMPT)["input_ids"]
    ahead = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    if called != ahead + bare:
        added = tokenizer.convert_ids_to_tokens([token for token in called if token not in bare])
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer: expected only a bos around a prompt, found {added} as well"
        )


def _set_bos(tokenizer: PreTrainedTokenizerBase, bos: str | None) -> None:
    """Make a plain call add this bos, or none; raise InputError if the tokenizer cannot do that."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        tokenizer.add_bos_token = bos is not None
    else:
        # The token is named BOS, since a colon in the token itself would be read as a type in these templates.
        token = {"id": "BOS", "ids": [tokenizer.bos_token_id], "tokens": [tokenizer.bos_token]}
        single, pair = ("BOS $A", "BOS $A $B") if bos else ("$A", "$A $B")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[token] if bos else []
        )
    expected = [tokenizer.bos_token_id] * bool(bos) + bare_ids(tokenizer, PROBE)
    found = tokenizer(PROBE)["input_ids"]
    if found != expected:
        raise InputError(
            f"{tokenizer.name_or_path}: expected {bos or 'no bos'} before a text, as the chat template writes it, "
            f"found {tokenizer.convert_ids_to_tokens(found)}"
        )
