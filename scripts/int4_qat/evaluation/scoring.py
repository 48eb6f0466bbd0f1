"""Score a checkpoint with lm-eval: by its own code, or by ours where that is proven to give the same scores."""

import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import datasets
import lm_eval
import torch
from lm_eval.tasks import TaskManager
from lm_eval.utils import env
from transformers import PreTrainedTokenizerBase

from int4_qat.checkpoint import architecture, weight_files
from int4_qat.engines import inference
from int4_qat.evaluation import last_position
from int4_qat.evaluation.replicas import Replicas
from int4_qat.evaluation.stock_scores import StockScores
from int4_qat.system import attention, devices
from int4_qat.tokenizer import tokenization

SEED = 1234
ROOM = 1.25  # times the weights must be free on each GPU for each to hold a replica: activations take memory as well
STOCK, LAST_POSITION = "stock", "last_position"
ENGINES = {STOCK: StockScores, LAST_POSITION: last_position.LastPosition}


class Options(NamedTuple):
    """The options of an evaluation: what is evaluated, how, and where."""

    checkpoint: Path  # folder, bf16 or int4
    num_fewshot: int  # examples ahead of each question
    limit: int | None  # questions of each task; None for all
    batch_size: int
    dtype: str  # a key of architecture.DTYPES
    device: str  # cpu or cuda
    gpus: int  # GPUs that share the questions, or a model that does not fit one; on a CPU, processes


def options_of(given: Mapping) -> Options:
    """Return the options by name, from settings that may include others."""
    return Options(*(given[name] for name in Options._fields))


class Evaluation(NamedTuple):
    """The results that lm-eval reports, and how they were obtained."""

    results: dict
    settings: dict
    prompts_over_max_length: Counter[str]  # questions that lost their beginning, by task
    stock_check: dict | None  # how far last_position's scores of the first questions are from lm-eval's own


def evaluate(options: Options, engine: str, tasks: list, task_manager: TaskManager) -> Evaluation:
    """Evaluate a checkpoint on lm-eval's tasks, which are given by name or as task configs."""
    tokenizer = tokenization.load_as_is(options.checkpoint)
    tokenizer_adds_bos = tokenization.adds_bos(tokenizer)
    tokenization.refuse_additions(tokenization.with_bos_of_template(tokenizer))
    reason = None
    if engine == LAST_POSITION:
        reason = last_position.objection(architecture.read_config(options.checkpoint))
    if reason:
        print(f"engine: using {STOCK} instead of {LAST_POSITION}: {reason}", flush=True)
    used = STOCK if reason else engine
    if has_replicas(options):
        make = functools.partial(make_engine, used, options)
        gpus = devices.visible() if options.device == "cuda" else [""] * options.gpus
        language_model = Replicas(make, gpus)
    else:
        language_model = make_engine(used, options, tokenizer)
    say_less()
    with templates_compiled_once():
        results = lm_eval.simple_evaluate(
            language_model,
            tasks=tasks,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
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
        "num_fewshot": options.num_fewshot,
        "limit": options.limit,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "softmax_dtype": "float32",
        "device": options.device,
        "seed": SEED,
        "max_length": language_model.max_length,
        "bos": tokenizer.bos_token if tokenization.adds_bos(tokenizer) else None,
        "bos_added_by_tokenizer": tokenizer_adds_bos,
    }
    return Evaluation(results, settings, language_model.prompts_over_max_length, language_model.stock_check)


def say_less() -> None:
    """Silence what lm-eval and datasets say of every subject: bars for a few rows each, and that num_fewshot is set."""
    datasets.disable_progress_bars()
    for module in ("lm_eval.evaluator", "lm_eval.models.huggingface"):
        logging.getLogger(module).setLevel(logging.ERROR)


def has_replicas(options: Options) -> bool:
    """Return whether each GPU holds the whole model and answers a share of the questions."""
    if options.gpus == 1 or options.device == "cpu":
        return options.gpus > 1
    needed = weight_files.loaded_bytes(options.checkpoint, architecture.DTYPES[options.dtype])
    return ROOM * needed <= min(devices.free_memories())


def make_engine(word: str, options: Options, tokenizer: PreTrainedTokenizerBase | None = None) -> StockScores:
    """Return the engine of this name, with the model's tokenizer and the model on the GPUs that this process sees."""
    attention.fit_kernels(shapes_vary=True)
    return ENGINES[word](
        pretrained=inference.load_model(options.checkpoint, architecture.DTYPES[options.dtype], options.device),
        tokenizer=tokenizer or tokenization.load_tokenizer(options.checkpoint),
        batch_size=options.batch_size,
        softmax_dtype=torch.float32,
    )


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Let lm-eval compile each of its templates once; otherwise it compiles one for every question."""
    env.from_string = functools.cache(env.from_string)
    try:
        yield
    finally:
        del env.from_string  # restores the method of the class
