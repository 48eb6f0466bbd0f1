"""Share the questions of an evaluation among replicas of a model, one on each GPU.

Each replica is a process with one GPU and the same engine as in an evaluation on a single GPU. A task goes to one
replica as a whole, so its scores are those of a single GPU. If there are too few tasks to keep all replicas busy, the
documents of each task are divided among the replicas.
"""

import contextlib
import multiprocessing
import queue
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from int4_qat.evaluation import answers
from int4_qat.evaluation.stock_scores import IN_WINDOWS, Scores, StockScores, refuse_equal, say_long
from int4_qat.system import devices, parallel

TASKS_PER_REPLICA = 2  # with fewer, tasks are divided

_engines: list[StockScores] = []  # the one engine with which this process answers


class Replicas(LM):
    """A model for lm-eval whose questions are answered by one engine on each GPU; `make` returns an engine."""

    def __init__(self, make: Callable[[], StockScores], gpus: list[str]) -> None:
        super().__init__()
        self.pools = [_process() for _ in gpus]
        starts = []
        for gpu, pool in zip(gpus, self.pools, strict=True):
            with devices.shown(gpu):  # a pool's process starts with its first task
                starts.append(pool.submit(_begin, make))
        with parallel.killed_in_one_line("score"):
            self.max_length = max(start.result() for start in starts)
        self.prompts_over_max_length: Counter[str] = Counter()
        self.stock_check: dict | None = None

    def loglikelihood(self, requests: list[Instance]) -> Scores:
        scores = self.shared(StockScores.scores.__name__, requests)
        refuse_equal(requests, scores)
        say_long(self, requests)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        values = self.shared(StockScores.rolling_scores.__name__, requests)
        say_long(self, requests, IN_WINDOWS)
        return values

    def generate_until(self, requests: list[Instance]) -> list[str]:
        texts = self.shared(StockScores.continuations.__name__, requests)
        say_long(self, requests)
        return texts

    def shared(self, method: str, requests: list[Instance]) -> list:
        """Return what a method of the engines returns for each request, in the order of the requests."""
        waiting: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for unit in sorted(units(requests, len(self.pools)), key=len, reverse=True):
            waiting.put(unit)
        found: list = [None] * len(requests)
        with (
            tqdm(total=len(requests), desc="score", unit=" requests", mininterval=1) as progress,
            ThreadPoolExecutor(len(self.pools)) as threads,
        ):

            def work(pool: ProcessPoolExecutor) -> None:
                while unit := _next(waiting):
                    try:
                        answered = pool.submit(_answer, method, [requests[number] for number in unit]).result()
                    except BaseException:
                        while _next(waiting):  # the other replicas take no more
                            pass
                        raise
                    for number, answer in zip(unit, answered, strict=True):
                        found[number] = answer
                    progress.update(len(unit))

            with parallel.killed_in_one_line("score"):
                list(threads.map(work, self.pools))
        with parallel.killed_in_one_line("score"):
            counts, checks = zip(*(pool.submit(_record).result() for pool in self.pools), strict=True)
        self.prompts_over_max_length = sum(counts, Counter())
        self.stock_check = answers.worst(checks)
        return found


def units(requests: list[Instance], replicas: int) -> Iterator[list[int]]:
    """Yield the indices of requests that one replica answers together: those of a task, or of some of its documents."""
    tasks: dict[str, dict[object, list[int]]] = {}
    for number, request in enumerate(requests):
        tasks.setdefault(request.task_name, {}).setdefault(request.doc_id, []).append(number)
    parts = 1 if len(tasks) >= TASKS_PER_REPLICA * replicas else replicas
    for documents in tasks.values():
        of_documents = list(documents.values())
        for part in range(parts):
            begin, end = (len(of_documents) * edge // parts for edge in (part, part + 1))
            if begin < end:
                yield [number for numbers in of_documents[begin:end] for number in numbers]


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), parallel.end_with_parent)


def _next(waiting: queue.SimpleQueue) -> list[int] | None:
    """Return the next unit, or None if none is left."""
    with contextlib.suppress(queue.Empty):
        return waiting.get_nowait()
    return None


def _begin(make: Callable[[], StockScores]) -> int:
    _engines.append(make())
    return _engines[-1].max_length


def _answer(method: str, requests: list[Instance]) -> list:
    return getattr(_engines[-1], method)(requests, disable_tqdm=True)


def _record() -> tuple[Counter[str], dict | None]:
    return _engines[-1].prompts_over_max_length, _engines[-1].stock_check
