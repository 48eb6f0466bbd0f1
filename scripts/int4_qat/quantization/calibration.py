"""Run calibration texts through a model layer by layer: a method changes each layer, which then computes as deployed.

All texts go through the model's own forward pass at once, with its repeated layers wrapped meanwhile. The model's own
code therefore handles the modules around the layers, and what a model family passes from one layer to the next. A layer
takes the texts in batches: as the quantized layers before it pass them on and, for comparison, as the unquantized ones
do. All inputs of the layer's linears in the bf16 model are kept while the layer is calibrated.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from int4_qat.quantization import batches, int4
from int4_qat.quantization.batches import Call, Cut
from int4_qat.quantization.int4 import Grid
from int4_qat.quantization.schemes import Scheme
from int4_qat.system.errors import InputError


class Layer:
    """One of a model's repeated layers, and the linears in it that are quantized, by their names in the model."""

    def __init__(self, module: torch.nn.Module, linears: dict[str, torch.nn.Linear]):
        self.module = module
        self.linears = linears
        self.calls: list[Call] = []  # for each batch, with the texts as the quantized layers before it pass them on
        self.undisturbed: list[dict[str, torch.Tensor]] = []  # for each batch, the linears' inputs in the bf16 model
        self._forward = module.forward

    def outputs(self, calls: list[Call] | None = None) -> Iterator[Any]:
        """Yield the layer's output for each batch, with its current weights."""
        for arguments, named in self.calls if calls is None else calls:
            yield self._forward(*arguments, **named)

    @contextmanager
    def watched(self, tell: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
        """Call `tell`, within this context, with the name and the input of each linear that is called."""
        hooks = [
            linear.register_forward_pre_hook(lambda _, arguments, name=name: tell(name, arguments[0]))
            for name, linear in self.linears.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


# A method changes the weights of a layer in place, and perhaps its norms; it returns the grids to round its linears on.
Method = Callable[[Layer, Scheme], dict[str, Grid]]


@torch.no_grad()
def calibrate(
    model: PreTrainedModel, texts: torch.Tensor, names: Iterable[str], method: Method, scheme: Scheme, batch_size: int
) -> dict[str, Grid]:
    """Change the weights of the named linears of a model, layer by layer; return their grids.

    `texts` are token ids (texts, length). A linear outside the repeated layers is not changed: it gets its own grid,
    and computes with its bf16 weights meanwhile. Raise InputError if the texts do not reach a linear, or if the model
    does not take them from layer to layer, once through each.
    """
    layers, others = layers_of(model, names)
    grids = own_grids(others, scheme)
    quantized, unquantized = (Cut(texts.shape, batch_size) for _ in range(2))
    passed_on: dict[str, torch.Tensor] = {}
    with tqdm(total=len(layers), desc="calibrate", unit=" layers", mininterval=1) as progress:

        def forward(layer: Layer, hidden: torch.Tensor, *others: Any, **named: Any) -> Any:
            if hidden is not passed_on.get("quantized", hidden) or (passed_on and layer is layers[0]):
                expected = "layers that each run once, on the output of the layer before"
                raise InputError(f"{type(model).__name__}: expected {expected}, found others")
            undisturbed = unquantized.calls((passed_on.get("unquantized", hidden), *others), named)
            passed_on["unquantized"] = batches.hidden_of(undisturbed_output(layer, undisturbed))
            layer.calls = quantized.calls((hidden, *others), named)
            if layer.linears:
                grids.update(method(layer, scheme))
            for name in sorted(layer.linears.keys() - grids.keys()):
                raise InputError(f"{name}: expected calibration texts that reach it, found none; give more of them")
            with deployed(layer.linears, grids, scheme):
                output = batches.join(list(layer.outputs()))
            passed_on["quantized"] = batches.hidden_of(output)
            layer.calls, layer.undisturbed = [], []
            progress.update()
            return output

        for layer in layers:
            layer.module.forward = functools.partial(forward, layer)
        try:
            model.base_model(input_ids=texts.to(model.device), use_cache=False)
        finally:
            for layer in layers:
                del layer.module.forward
    return grids


def undisturbed_output(layer: Layer, calls: list[Call]) -> Any:
    """Return a layer's output for all texts as the bf16 model passes them on; keep the inputs of its linears.

    Raise InputError for a linear that computes more than once, or only for some of the texts.
    """
    given: dict[str, torch.Tensor] = {}
    outputs = []

    def keep(name: str, x: torch.Tensor) -> None:
        if name in given:
            raise InputError(f"{name}: expected a linear that its layer uses once, found one that it uses more often")
        given[name] = x

    with layer.watched(keep):
        for output in layer.outputs(calls):
            outputs.append(output)
            layer.undisturbed.append(dict(given))
            given.clear()
    for name in sorted(set().union(*layer.undisturbed)):
        if not all(name in of_batch for of_batch in layer.undisturbed):
            raise InputError(f"{name}: expected a linear that all calibration texts reach, found one that some do not")
    return batches.join(outputs)


def layers_of(model: PreTrainedModel, names: Iterable[str]) -> tuple[list[Layer], dict[str, torch.nn.Linear]]:
    """Return the repeated layers of each list that holds any of the named linears, and the linears in no such list.

    A repeated layer is an element of an outermost list of modules; it may hold none of the linears.
    """
    modules = dict(model.named_modules())
    held: dict[str, dict[str, torch.nn.Linear]] = {}
    others = {}
    for name in names:
        parts = name.split(".")
        ends = [end for end in range(1, len(parts)) if isinstance(modules[".".join(parts[:end])], torch.nn.ModuleList)]
        if ends:
            in_list = ".".join(parts[: ends[0]])
            for number in range(len(modules[in_list])):
                held.setdefault(f"{in_list}.{number}", {})
            held[".".join(parts[: ends[0] + 1])][name] = modules[name]
        else:
            others[name] = modules[name]
    return [Layer(modules[name], linears) for name, linears in held.items()], others


def own_grids(linears: dict[str, torch.nn.Linear], scheme: Scheme) -> dict[str, Grid]:
    """Return each linear's own grid, on which it is rounded to nearest."""
    return {name: int4.quantize(linear.weight, scheme).grid for name, linear in linears.items()}


@contextmanager
def deployed(linears: dict[str, torch.nn.Linear], grids: dict[str, Grid], scheme: Scheme) -> Iterator[None]:
    """Let some linears compute, within this context, with their dequantized int4 weights."""
    weights = {name: linear.weight.data for name, linear in linears.items()}
    for name, linear in linears.items():
        linear.weight.data = int4.fake_quantize(weights[name], scheme, grid=grids[name])
    try:
        yield
    finally:
        for name, linear in linears.items():
            linear.weight.data = weights[name]
