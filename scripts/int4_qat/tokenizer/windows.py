"""Running text as windows of tokens, each with the model's bos at its head."""

from transformers import PreTrainedTokenizerBase

from int4_qat.tokenizer import tokenization


def cut(tokenizer: PreTrainedTokenizerBase, tokens: list[int], length: int) -> list[list[int]]:
    """Return windows of at most `length` tokens that do not overlap; the bos counts among them."""
    bos = [tokenizer.bos_token_id] if tokenization.adds_bos(tokenizer) else []
    step = length - len(bos)
    return [bos + tokens[start : start + step] for start in range(0, len(tokens), step)]
