"""Test what is said of questions that are longer than a model's context."""

from collections import Counter
from types import SimpleNamespace

from int4_qat.evaluation import stock_scores


def test_questions_are_counted_with_the_requests_of_their_tasks(capsys):
    """A group may mix tasks with choices and tasks with answers in words, which lm-eval asks for in turn."""
    model = SimpleNamespace(prompts_over_max_length=Counter(choices=3), max_length=2048)
    of_choices = [SimpleNamespace(task_name="choices", doc_id=number // 4) for number in range(40)]
    in_words = [SimpleNamespace(task_name="words", doc_id=number) for number in range(20)]
    stock_scores.say_long(model, of_choices)
    assert capsys.readouterr().out.startswith("3 of 10 questions are longer than the model's context of 2048 tokens: ")
    stock_scores.say_long(model, in_words)
    assert capsys.readouterr().out == ""
