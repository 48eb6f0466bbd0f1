"""AWQ: a placeholder, which says only what the method needs."""

NEEDS = ("texts",)
