"""The table of a training: a row for each step, and what was measured of held-out rows along the way."""

import pandas as pd

from int4_qat.system.errors import InputError

COLUMNS = ["step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "peak_memory_gb"]
HELD_OUT_SECONDS = "held_out_seconds"
HELD_OUT_KL = "held_out_kl"  # the column that a training with eval_steps has besides, from step 0 on


def table_of(log: list[dict]) -> pd.DataFrame:
    """Return the table of a training of what its trainer logged, a row for each step."""
    steps = pd.DataFrame([row for row in log if "loss" in row], columns=COLUMNS)
    measured = held_out_kl(log)
    if not measured:
        return steps
    return steps.merge(pd.DataFrame({"step": measured.keys(), HELD_OUT_KL: measured.values()}), how="outer", on="step")


def held_out_kl(log: list[dict]) -> dict[int, float]:
    """Return the divergence from the base on held-out rows, in nats a token, by step."""
    return {row["step"]: row[HELD_OUT_KL] for row in log if HELD_OUT_KL in row}


def refuse_worse(log: list[dict]) -> None:
    """Raise InputError if the held-out divergence is larger at the end of a training than where it began."""
    measured = held_out_kl(log)
    if measured and not measured[max(measured)] <= measured[min(measured)]:  # as with NaN
        begun, ended = measured[min(measured)], measured[max(measured)]
        raise InputError(
            f"finetune: expected a held-out KL of at most {begun:.4f} nats a token, where training began, found "
            f"{ended:.4f} after {max(measured)} steps; lower learning_rate, or set allow_worse"
        )
