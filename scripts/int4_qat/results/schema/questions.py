"""What evaluate_questions finds."""

from int4_qat.results.schema.mmlu import Scores


class Questions(Scores):
    """questions/<name>.json: one's own questions; a row for each is in questions/<name>_samples.parquet."""

    groups: int
    by_group: dict[str, Scores]
    stock_check: dict | None  # how far the scores of our engine are from those of lm-eval's
    settings: dict
    versions: dict[str, str]
