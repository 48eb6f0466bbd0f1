"""Convert int4 weights to torchao's plain tensor in memory, which gives the files their names and metadata."""

from torchao.quantization import Int4Tensor

from int4_qat.quantization import plain_weight
from int4_qat.quantization.int4 import Int4Weight


def of_weight(quantized: Int4Weight) -> Int4Tensor:
    """Return torchao's tensor in plain packing, which transformers and vLLM load."""
    codes, scale, zero_point = quantized
    return Int4Tensor(
        qdata=plain_weight.pack(codes),
        scale=scale,
        zero_point=zero_point,
        block_size=[1, codes.shape[1] // len(scale)],
        shape=codes.shape,
    )
