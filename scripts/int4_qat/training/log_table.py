"""Make the table of a training: one row per step, with the measurements on held-out rows along the way."""

import pandas as pd

from int4_qat.system.errors import InputError

COLUMNS = ["step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "peak_memory_gb"]
HELD_OUT_SECONDS = "held_out_seconds"
HELD_OUT_KL = "held_out_kl"  # a further column of a training with eval_steps, from step 0 on


def table_of(log: list[dict]) -> pd.DataFrame:
    """Return the table of a training from its trainer's log, one row per step."""
    steps = pd.DataFrame([row for row in log if "loss" in row], columns=COLUMNS)
    measured = held_out_kl(log)
    if not measured:
        return steps
    return steps.merge(pd.DataFrame({"step": measured.keys(), HELD_OUT_KL: measured.values()}), how="outer", on="step")


def held_out_kl(log: list[dict]) -> dict[int, float]:
    """Return the divergence from the base on held-out rows, in nats per token, by step."""
    return {row["step"]: row[HELD_OUT_KL] for row in log if HELD_OUT_KL in row}


def refuse_worse(log: list[dict]) -> None:
    """Raise InputError if the held-out divergence is larger at the end of a training than at its beginning."""
    measured = held_out_kl(log)
    if measured and not measured[max(measured)] <= measured[min(measured)]:  # true with NaN, too
        begun, ended = measured[min(measured)], measured[max(measured)]
        raise InputError(
            f"finetune: expected a held-out KL of at most {begun:.4f} nats per token, as at the start, found "
            f"{ended:.4f} after {max(measured)} steps; lower learning_rate, or set allow_worse"
        )
