"""GPTQ: stands here for its file until that comes."""

NEEDS = ("texts",)
