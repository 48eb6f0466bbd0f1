"""Define the schema of questions/<name>.json, which evaluate_questions writes."""

from int4_qat.results.schema.mmlu import Scores


class Questions(Scores):
    """The content of questions/<name>.json: the user's own questions; <name>_samples.parquet has a row for each."""

    groups: int
    by_group: dict[str, Scores]
    stock_check: dict | None  # how far our engine's scores are from those of lm-eval's engine
    settings: dict
    versions: dict[str, str]
