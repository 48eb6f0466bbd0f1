"""Check a base model before any training: it needs plain linears, finite weights in bfloat16 and one head."""

from collections import Counter
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from int4_qat.checkpoint import architecture, blocks, module_names, text_model, weight_files
from int4_qat.checkpoint.weight_files import StoredTensor
from int4_qat.quantization import int4, linears, schemes
from int4_qat.system import parallel
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, turns

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
LARGEST_OTHER_SHARE = 0.1  # of all weights, in matrices on a text's path that no linear or embedding holds


def refuse_unsupported(folder: Path) -> architecture.Checkpoint:
    """Return the checkpoint in a folder; raise InputError for the first thing that cannot be trained or made int4."""
    refuse_layers(folder, architecture.without_weights(folder))
    checkpoint = architecture.open_checkpoint(folder)
    refuse_types(folder, checkpoint.tensors)
    refuse_contradicted_ties(folder, checkpoint)
    counts = parallel.in_threads(lambda key: count_not_finite(checkpoint.tensors[key]), checkpoint.tensors, "check")
    for key, count in counts.items():
        if count:
            path = checkpoint.tensors[key].path
            raise InputError(f"{path}: {key}: expected finite numbers, found {count} that are NaN or infinite")
    return checkpoint


def describe(folder: Path, checkpoint: architecture.Checkpoint) -> dict:
    """Return the facts about a model that a config must fit, for model_facts."""
    model, _, names = checkpoint
    inputs = linears.for_int4(model, set(names.values()))
    tokenizer = tokenization.load_tokenizer(folder)
    bos, added = tokenization.template_bos(tokenizer), tokenization.adds_bos(tokenization.load_as_is(folder))
    if added != bool(bos):
        found = f"the tokenizer adds {tokenizer.bos_token}" if added else "the tokenizer adds none"
        print(f"texts begin with {bos or 'no bos'}, as the chat template writes them; on its own {found}", flush=True)
    instruction, response = turns.propose(tokenizer)
    return {
        "model_type": model.config.model_type,
        "class": type(model).__name__,
        "sees_pictures": hasattr(model.config, "vision_config"),
        "longest_text": architecture.longest_text(model.config),
        "modules": text_model.holders(model),
        "no_text_passes_through": text_model.unreached(model),
        "inputs": inputs,
        "bos": bos,
        "conversation": turns.conversation(tokenizer),
        "instruction_part": instruction,
        "response_part": response,
        "bytes": sizes_of(folder, model, list(inputs)),
    }


def refuse_wrong_marks(folder: Path, arms: dict[str, dict]) -> None:
    """Raise InputError unless each arm's turn marks make only the answers count in the loss, token by token."""
    tokenizer = tokenization.load_tokenizer(folder)
    for arm, recipe in arms.items():
        turns.refuse_wrong_marks(tokenizer, f"finetune.arms.{arm}", recipe["instruction_part"], recipe["response_part"])


def sizes_of(folder: Path, model: PreTrainedModel, in_int4: list[str]) -> dict:
    """Return the bytes of the weights in bf16, and in int4 by group size, equal for both kinds of zero point."""
    bf16, weights = weight_files.file_bytes(folder), [model.get_submodule(name).weight for name in in_int4]
    before = sum(weight.numel() for weight in weights) * blocks.STORAGE_DTYPE.itemsize

    def after(group_size: int) -> int:
        return sum(int4.stored_bytes(int4.empty(weight, schemes.int4(group_size))) for weight in weights)

    return {"bf16": bf16, "int4": {str(size): bf16 - before + after(size) for size in schemes.GROUP_SIZES}}


def refuse_layers(folder: Path, model: PreTrainedModel) -> None:
    """Raise InputError unless the modules that a text passes through are plain linears and embeddings."""
    parameters = dict(model.named_parameters())
    unreached = text_model.unreached(model)
    others: Counter[str] = Counter()
    for name, parameter in parameters.items():
        if parameter.ndim < 2 or module_names.named_by(unreached, name):
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Conv1D):
            raise InputError(f"{folder}: {name}: expected a Linear, found a Conv1D, whose weight is transposed")
        if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear:
            raise InputError(f"{folder}: {name}: expected a plain Linear, found a {type(module).__name__}")
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, *CONVOLUTIONS)):
            continue
        if parameter.ndim > 2:
            shape = list(parameter.shape)
            raise InputError(f"{folder}: {name}: expected linears, found fused experts with weights of shape {shape}")
        others[name] = parameter.numel()
    share = others.total() / sum(parameter.numel() for parameter in parameters.values())
    if share > LARGEST_OTHER_SHARE:
        raise InputError(
            f"{folder}: {others.most_common(1)[0][0]}: expected linears, found {share:.0%} in other matrices"
        )


def refuse_types(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    """Raise InputError unless most of the elements are in bfloat16."""
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[tensor.dtype] += tensor.elements
    most = max(elements, key=elements.get, default="none")
    if most != weight_files.NAMES[torch.bfloat16]:
        raise InputError(f"{folder}: expected weights in bfloat16 (BF16), found {most}; convert them")


def refuse_contradicted_ties(folder: Path, checkpoint: architecture.Checkpoint) -> None:
    """Raise InputError if the config ties two weights that the files hold with different values.

    transformers would keep both, with a warning; vLLM ties them.
    """
    stored = {name: checkpoint.tensors[key] for key, name in checkpoint.names.items()}
    for target, source in checkpoint.model.all_tied_weights_keys.items():
        if {target, source} <= stored.keys() and weight_files.differing(stored[source], stored[target]):
            raise InputError(
                f"{folder / 'config.json'}: tie_word_embeddings: expected false, since {target} is not {source}"
            )


def count_not_finite(tensor: StoredTensor) -> int:
    """Return how many elements are NaN or infinite."""
    if not weight_files.DTYPES[tensor.dtype].is_floating_point:
        return 0
    return sum(int((~tensor.read(*block).isfinite()).sum()) for block in tensor.blocks())
