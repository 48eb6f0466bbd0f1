"""int4 weights as torchao's plain tensor in memory, which writes the names and the metadata of the files."""

from torchao.quantization import Int4Tensor

from int4_qat.quantization import plain_weight
from int4_qat.quantization.int4 import Int4Weight


def of_weight(quantized: Int4Weight) -> Int4Tensor:
    """Return torchao's tensor in plain packing: what transformers and vLLM load."""
    codes, scale, zero_point = quantized
    return Int4Tensor(
        qdata=plain_weight.pack(codes),
        scale=scale,
        zero_point=zero_point,
        block_size=[1, codes.shape[1] // len(scale)],
        shape=codes.shape,
    )
