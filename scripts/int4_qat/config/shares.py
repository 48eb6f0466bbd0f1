"""Divide the rows of a training among its texts."""


def rows_of(recipe: dict) -> int:
    """Return how many rows the steps of a training take."""
    return recipe["max_steps"] * recipe["train_batch_size"]


def of_texts(weights: dict[str, float], total: int) -> dict[str, int]:
    """Return how many of `total` rows each text gets by its weight; the largest remainders are rounded up."""
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    whole = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole
