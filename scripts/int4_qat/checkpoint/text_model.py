"""Find the parts of a model that text passes through, by running the architecture, not from a list of names.

A text goes through the model on the meta device, which costs no memory; parameters that get a gradient were reached.
Vision and audio parts are not reached, nor are parameters that shared layers hold but never use. Parts that are not
reached are neither trained on texts nor made int4.
"""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from int4_qat.checkpoint import module_names
from int4_qat.system.errors import InputError, one_line

TOKENS = 4


class NothingIsTrue(TorchDispatchMode):
    """A mode that answers False or 0 when a forward pass reads a value, which the meta device does not have.

    The answers mean that there is no picture and no padding.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False if args[0].dtype == torch.bool else 0
        return function(*args, **(kwargs or {}))


def reached_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters that a text's forward pass uses; the model must be on the meta device."""
    tokens = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    try:
        with NothingIsTrue(), torch.device("meta"), torch.enable_grad():
            # The cache is on, since without one transformers reads values to find packed sequences.
            model(input_ids=tokens, use_cache=True).logits.sum().backward()
    except Exception as error:  # each model's own code runs here
        expected = "a model that can process a text"
        raise InputError(f"{type(model).__name__}: expected {expected}, found {one_line(error):.200}") from None
    parameters = model.named_parameters(remove_duplicate=False)
    reached = {name for name, parameter in parameters if parameter.grad is not None}
    model.zero_grad()
    return reached


def embeddings(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights of embeddings, except of one that is the output head too."""
    head = model.get_output_embeddings()
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {f"{name}.weight" for name, module in modules.items() if head is None or module.weight is not head.weight}


def unreached(model: PreTrainedModel) -> list[str]:
    """Return the topmost modules of a model that no text passes through; the model must be on the meta device."""
    return module_names.unreached_roots([name for name, _ in model.named_parameters()], reached_parameters(model))


def holders(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that hold parameters, sorted."""
    parameters = model.named_parameters(remove_duplicate=False)
    return sorted({name.rpartition(".")[0] for name, _ in parameters})


def output_head(model: PreTrainedModel) -> str | None:
    """Return the name of the module that computes logits from the last hidden state, or None."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None
