"""Score a checkpoint with lm-eval: by its own code, or by ours where that is proven to give the same."""

import argparse
from collections import Counter
from typing import NamedTuple

import lm_eval
import torch
from lm_eval.tasks import TaskManager

from int4_qat import last_position, models, stock_scores, tokenization

SEED = 1234
STOCK, LAST_POSITION = "stock", "last_position"
ENGINES = {STOCK: stock_scores.StockScores, LAST_POSITION: last_position.LastPosition}


class Evaluation(NamedTuple):
    """What lm-eval reports, and how it came about."""

    results: dict
    settings: dict
    prompts_over_max_length: Counter[str]  # questions that lost their beginning, by task
    stock_check: dict | None  # of last_position: how far its scores of the first questions are from lm-eval's own


def evaluate(arguments: argparse.Namespace, engine: str, tasks: list, task_manager: TaskManager) -> Evaluation:
    """Evaluate a checkpoint on lm-eval's tasks, by --checkpoint, --dtype, --device, --num-fewshot, --limit and so on.

    `tasks` are lm-eval's names or task configs.
    """
    tokenizer = tokenization.load_tokenizer(arguments.checkpoint)
    tokenization.refuse_additions(tokenizer)
    reason = None
    if engine == LAST_POSITION:
        reason = last_position.objection(models.read_config(arguments.checkpoint), tokenizer)
    if reason:
        print(f"engine: {STOCK} in place of {LAST_POSITION}: {reason}", flush=True)
    used = STOCK if reason else engine
    language_model = ENGINES[used](
        pretrained=models.load_model(arguments.checkpoint, models.DTYPES[arguments.dtype], arguments.device),
        tokenizer=tokenizer,
        batch_size=arguments.batch_size,
        softmax_dtype=torch.float32,
    )
    results = lm_eval.simple_evaluate(
        language_model,
        tasks=tasks,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        task_manager=task_manager,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )
    settings = {
        "engine": engine,
        "engine_used": used,
        "engine_reason": reason,
        "num_fewshot": arguments.num_fewshot,
        "limit": arguments.limit,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "softmax_dtype": "float32",
        "device": arguments.device,
        "seed": SEED,
        "max_length": language_model.max_length,
        "bos": tokenizer.bos_token if tokenization.adds_bos(tokenizer) else None,
        "bos_added_by_tokenizer": tokenization.adds_bos(tokenization.load_as_is(arguments.checkpoint)),
    }
    return Evaluation(results, settings, language_model.prompts_over_max_length, language_model.stock_check)
