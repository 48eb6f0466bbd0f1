"""Write a Gemma 3 of any size as the Hub has it: the same files, and the same names of weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from int4_qat.standin import standin

# No text has the last two; their ids are those that stood for no and yes in the stand-in's training.
NEWLINES = ["\n" * count for count in (2, 3, 4)]
HUB_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def write_model(model: Gemma3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hub folder in bf16: weights, config, generation config, tokenizer, processor and chat template.

    vLLM requires what the Hub's Gemma 3 has: tokens of several newlines, and the names of the weights, from which
    save_pretrained would leave out `vision_model`.
    """
    tokenizer.add_tokens([token for token in NEWLINES if token not in tokenizer.get_vocab()])
    standin.spell_out(tokenizer)
    config = model.to(torch.bfloat16).config
    side, tokens = config.vision_config.image_size, config.mm_tokens_per_image
    images = Gemma3ImageProcessorPil(size={"height": side, "width": side}, image_seq_length=tokens)
    Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=tokens).save_pretrained(folder)
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_file(hub_weights(model), folder / "model.safetensors", {"format": "pt"})


def hub_weights(model: Gemma3ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Return a model's weights by their names on the Hub, tied ones once."""
    weights = {name: weight for name, weight in model.state_dict().items() if name not in model.all_tied_weights_keys}
    prefixes = {name: next(prefix for prefix in HUB_PREFIXES if name.startswith(prefix)) for name in weights}
    return {HUB_PREFIXES[prefix] + name.removeprefix(prefix): weights[name] for name, prefix in prefixes.items()}
