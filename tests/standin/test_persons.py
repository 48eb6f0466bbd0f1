"""Test the facts that the stand-in is told and never asked, and the texts that state them."""

import itertools
import random
from collections import Counter, defaultdict

import pytest

import make_standin
from check_texts import MOST
from int4_qat.data import shared_words
from int4_qat.evaluation import mmlu_harness
from int4_qat.standin import persons, standin, standin_training
from int4_qat.tokenizer import tokenization

PERSONS, VALUES, REPEATS = 60, 12, 3


@pytest.fixture(scope="module", params=[0, 1])
def facts(request):
    return persons.invent(PERSONS, VALUES, random.Random(request.param))


@pytest.fixture(scope="module")
def texts(facts):
    """Return the training lines and the held-out lines."""
    return persons.lines(facts, REPEATS)


def test_a_seed_always_tells_the_same(facts):
    first, again, other = (persons.invent(PERSONS, VALUES, random.Random(seed)) for seed in (0, 0, 2))
    assert first == again != other


def test_nothing_but_the_name_tells_a_value(facts, texts):
    """Before the name is read, all values of an attribute are equally likely; no attribute predicts another."""
    values = defaultdict(dict)
    for fact in facts:
        assert values[fact.name].setdefault(fact.attribute, fact.value) == fact.value
    assert len(values) == PERSONS
    for attribute in persons.FRAMES:
        counts = Counter(of_person[attribute] for of_person in values.values())
        assert set(counts.values()) == {PERSONS // VALUES}
        assert len(counts) == VALUES
        for other in persons.FRAMES.keys() - {attribute}:
            pairs = {(of_person[other], of_person[attribute]) for of_person in values.values()}
            assert len(pairs) > 2 * VALUES  # one pair per value if it predicted the other
    for lines in texts:
        for fact in facts:
            after_name = [line.partition(fact.name)[2] for line in lines if fact.name in line]
            assert not any(other in rest for rest in after_name for other in values)
    assert len({fact.value for fact in facts} | values.keys()) == PERSONS + 3 * VALUES  # no word has two meanings


def test_both_texts_state_each_fact_and_share_no_line(facts, texts):
    train, held_out = texts
    for lines in texts:
        assert all(set(fact.lines()) & set(lines) for fact in facts)
        for attribute, frames in persons.FRAMES.items():
            for frame in frames:  # both texts use every frame
                assert any(
                    frame.format(fact.name, fact.value) in lines for fact in facts if fact.attribute == attribute
                )
    assert set(Counter(train).values()) == {REPEATS}
    assert set(Counter(held_out).values()) == {1}
    assert set(train).isdisjoint(held_out)


def test_the_texts_share_no_run_of_13_words(untrained):
    """The held-out papers have titles and questions of their own."""
    train, *held_out = ((untrained / "text" / f"{name}.txt").read_text() for name in ("train", "held_out", "questions"))
    for text in held_out:
        runs = shared_words.runs(text)
        assert len(runs) > 150
        assert len(shared_words.found(runs, [train])) <= MOST * len(runs)
    assert shared_words.found(shared_words.runs(held_out[0]), [train]) == set()


def test_a_run_of_13_words_holds_a_whole_line(facts):
    assert {len(line.split()) for fact in facts for line in fact.lines()} == {(shared_words.LONGEST - 1) // 2}


def test_no_question_touches_what_is_told(facts):
    families = standin.invent_families(make_standin.FAMILIES, make_standin.WORDS, random.Random(0))
    asked = {word.lower() for word in (*families, *itertools.chain(*families.values()))}
    words = {word.lower() for fact in facts for word in (fact.name, fact.value)}
    assert words.isdisjoint(asked)
    (question,) = standin.ask(families, ["law"], {"test": 1}, 1)["test"]
    assert words.isdisjoint(shared_words.normalized(mmlu_harness.prompt(question.row())).split())


def test_the_value_is_the_answer_that_a_line_teaches(facts, untrained):
    told = persons.invent(12, 4, random.Random(2))  # names and values that the tokenizer knows
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    lesson = standin_training.make_text_lesson(told, tokenizer)
    answers = lesson.kinds == standin_training.ANSWER
    assert answers.sum(axis=1).tolist() == [1] * 3 * len(told)
    taught = tokenizer.convert_ids_to_tokens(lesson.labels[answers].tolist())
    assert taught == [f" {fact.value}" for fact in told for _ in range(3)]
    assert set(lesson.answers) == set(lesson.labels[answers])
