"""A user's own questions are asked and scored exactly as MMLU's, with any number of choices each."""

import json
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.api.metrics import pooled_sample_stderr

import download_questions
import evaluate_mmlu
import evaluate_questions
import families
from int4_qat.data import mmlu, mmlu_parquet
from int4_qat.engines import inference
from int4_qat.evaluation import mmlu_harness, question_tasks
from int4_qat.standin import standin
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import run_in_process

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = [f"w{index}" for index in range(60)]
SIZES = [2, 5, 26, 3, 2, 7]  # numbers of choices of a group's questions
GROUPS = ("pots_and pans", "{{tools}}")  # the second must not be read as a template
MMLU_SUBJECTS = ("anatomy", "us_foreign_policy")
LEAD = "The following are multiple choice questions (with answers)"


def asked(sizes, seed):
    """Return random questions with the given numbers of choices."""
    chance = random.Random(seed)
    return [
        {
            "question": f" {' '.join(chance.choices(WORDS, k=12))}\n",
            "choices": [" ".join(chance.choices(WORDS, k=2)) for _ in range(size)],
            "answer": chance.randrange(size),
        }
        for size in sizes
    ]


@pytest.fixture(scope="module")
def model(untrained, tmp_path_factory):
    """Return the folder of a tiny Llama whose tokenizer has a token for each of the 26 letters."""
    folder = tmp_path_factory.mktemp("lettered")
    words = [" ".join(WORDS), f"\n {LEAD} about pots and pans.\n\nAnswer:", *(f" {letter}" for letter in LETTERS)]
    tokenizer = standin.build_tokenizer([*words, *(f"\n{letter}. " for letter in LETTERS)])
    standin.spell_out(tokenizer)
    tokenizer.save_pretrained(folder / "tokenizer")
    return families.write("llama", folder / "tokenizer", folder / "llama")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function that imports questions, with or without groups, as the set `mine`, and returns its folder."""

    def bring(groups, shots=2):
        for split, sizes in {"test": SIZES, "dev": [26, 2, 4]}.items():
            rows = [
                row | ({"group": group} if groups else {})
                for number, group in enumerate(groups or [None])
                for row in asked(sizes, f"{split} {number}")
            ]
            (tmp_path / "own" / "all").mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own" / "all" / f"{split}-0.parquet")
        options = ("--source", tmp_path / "own", "--name", "mine", "--num-fewshot", shots)
        run_in_process(download_questions, monkeypatch, *options, "--output", tmp_path / "mine")
        return tmp_path / "mine"

    return bring


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Return a function that scores a set and returns the report and the samples."""

    def run(model, questions, *options, shots=0, engine="stock"):
        outputs = ("--output", tmp_path / "out" / "mine.json", "--samples", tmp_path / "out" / "mine_samples.parquet")
        shared = ("--num-fewshot", shots, "--engine", engine, "--batch-size", 4, "--dtype", "float32")
        chosen = ("--checkpoint", model, "--name", "mine", "--questions", questions)
        run_in_process(evaluate_questions, monkeypatch, *chosen, *shared, *options, *outputs)
        return json.loads(outputs[1].read_text()), pd.read_parquet(outputs[3])

    return run


def expected_prompt(group, examples, row):
    """Return MMLU's prompt for these questions, written without lm-eval."""
    about = f" about {group.replace('_', ' ')}" if group else ""
    parts = [f"{LEAD}{about}.\n\n"]
    for one in [*examples, row]:
        lines = [one["question"].strip(), *(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(one["choices"]))]
        parts.append("\n".join([*lines, "Answer:"]))
        parts.append(f" {LETTERS[one['answer']]}\n\n")
    return "".join(parts[:-1])


@torch.no_grad()
def expected_likelihoods(model, tokenizer, prompt, choices):
    scores = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].log_softmax(-1)
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in LETTERS[:choices]]
    return [scores[token].item() for (token,) in letters]


@pytest.mark.parametrize("groups", [(), GROUPS], ids=["no groups", "groups"])
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("engine", ["stock", "last_position"])
def test_scores_are_those_of_an_independent_computation(model, own, evaluate, groups, shots, engine):
    folder = own(groups)
    report, samples = evaluate(model, folder, shots=shots, engine=engine)
    assert (report["settings"]["engine_used"], report["settings"]["num_fewshot"]) == (engine, shots)
    loaded = inference.load_model(model, torch.float32, "cpu")
    tokenizer = tokenization.load_tokenizer(model)
    columns = [f"log_likelihood_{letter}" for letter in LETTERS]
    assert list(samples) == ["subject", "index", *columns, "prediction", "answer", "correct"]
    assert set(samples["subject"]) == set(groups or ["mine"])
    for number, group in enumerate(groups or [None]):
        found = samples[samples["subject"] == (group or "mine")]
        examples = asked([26, 2, 4], f"dev {number}")[:shots]
        for row, (_, sample) in zip(asked(SIZES, f"test {number}"), found.iterrows(), strict=True):
            size = len(row["choices"])
            expected = expected_likelihoods(loaded, tokenizer, expected_prompt(group, examples, row), size)
            values = sample[columns].to_numpy(dtype=float)
            np.testing.assert_allclose(values[:size], expected, rtol=1e-4)
            assert np.isnan(values[size:]).all()
            assert (sample["answer"], sample["prediction"]) == (row["answer"], np.argmax(expected))
            assert sample["correct"] == (row["answer"] == np.argmax(expected))
    nulls = pq.read_table(folder.parent / "out" / "mine_samples.parquet")["log_likelihood_Z"].null_count
    assert nulls == len(samples) - len(groups or [None])


def test_the_report_is_the_samples(model, own, evaluate):
    """Accuracies and standard errors follow from the samples, for groups and, with lm-eval's pooling, for the whole."""
    report, samples = evaluate(model, own(GROUPS), engine="last_position")
    errors = []
    for group, table in samples.groupby("subject"):
        scores, share = report["by_group"][group], table["correct"].mean()
        assert (scores["accuracy"], scores["questions"], scores["prompts_over_max_length"]) == (share, len(SIZES), 0)
        errors.append(scores["stderr"])
        assert scores["stderr"] == pytest.approx((share * (1 - share) / (len(SIZES) - 1)) ** 0.5)
    assert report["accuracy"] == pytest.approx(samples["correct"].mean())
    assert report["stderr"] == pytest.approx(pooled_sample_stderr(errors, [len(SIZES)] * 2))
    assert (report["questions"], report["groups"], report["by_group"].keys()) == (12, 2, set(GROUPS))
    assert report["stock_check"]["questions"] == 4
    assert report["stock_check"]["largest_difference"] < 1e-4
    assert report["settings"]["task"] == "mine"


def test_two_runs_write_the_same_bytes(model, own, evaluate, tmp_path):
    folder, written = own(GROUPS), []
    for _ in range(2):
        evaluate(model, folder, shots=1, engine="last_position")
        written.append([path.read_bytes() for path in sorted((tmp_path / "out").iterdir())])
    assert written[0] == written[1]


def test_a_limit_is_of_each_group(model, own, evaluate):
    report, samples = evaluate(model, own(GROUPS), "--limit", 2)
    assert samples["index"].tolist() == [0, 1, 0, 1]
    assert [scores["questions"] for scores in report["by_group"].values()] == [2, 2]
    assert samples["log_likelihood_F"].isna().all()  # the columns cover all questions, whatever the limit


@pytest.fixture
def as_own(untrained, tmp_path, monkeypatch):
    """Return the folder of some subjects of the stand-in's MMLU, imported as a user's own questions."""
    for split in ("dev", "test"):
        table = pd.read_parquet(untrained / "mmlu" / "all" / f"{split}-00000-of-00001.parquet")
        (tmp_path / "own" / "all").mkdir(parents=True, exist_ok=True)
        kept = table[table["subject"].isin(MMLU_SUBJECTS)]
        kept.to_parquet(tmp_path / "own" / "all" / f"{split}-0.parquet", index=False)
    options = ("--source", tmp_path / "own", "--name", "mine", "--num-fewshot", 5)
    run_in_process(download_questions, monkeypatch, *options, "--output", tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("engine", ["stock", "last_position"])
def test_a_subject_of_mmlu_scores_the_same_to_the_bit(
    untrained, mmlu_folder, as_own, evaluate, tmp_path, monkeypatch, engine, shots
):
    report, samples = evaluate(untrained / "model", as_own, shots=shots, engine=engine)
    monkeypatch.setattr(mmlu_harness, "shard_subjects", lambda *_: list(MMLU_SUBJECTS))
    outputs = ("--output", tmp_path / "mmlu.json", "--samples", tmp_path / "mmlu.parquet")
    options = ("--num-fewshot", shots, "--engine", engine, "--batch-size", 4, "--dtype", "float32")
    chosen = ("--checkpoint", untrained / "model", "--mmlu", mmlu_folder)
    run_in_process(evaluate_mmlu, monkeypatch, *chosen, *options, *outputs)
    pd.testing.assert_frame_equal(samples, pd.read_parquet(tmp_path / "mmlu.parquet"), check_exact=True)
    expected = json.loads((tmp_path / "mmlu.json").read_text())
    for subject, scores in report["by_group"].items():
        assert scores == {key: expected["by_subject"][subject][key] for key in scores}
    assert report["stock_check"] == expected["stock_check"]
    assert report["settings"] | {"task": "mmlu"} == expected["settings"]
    assert report["settings"]["engine_used"] == engine


@pytest.mark.parametrize("subject", mmlu.SUBJECTS)
def test_the_line_ahead_of_a_subject_is_mmlus(subject):
    assert question_tasks.description("mine", subject) == mmlu_harness.description(subject)


def test_letters_of_several_tokens_score_as_in_lm_eval(untrained, own, evaluate):
    """The stand-in's tokenizer spells letters beyond D with several tokens."""
    questions = own(())
    (report, samples), (_, expected) = (
        evaluate(untrained / "model", questions, engine=engine) for engine in ("last_position", "stock")
    )
    assert report["settings"]["engine_used"] == "last_position"
    pd.testing.assert_frame_equal(samples, expected, rtol=1e-4)
    assert len(samples) == len(SIZES)


def write_questions(folder, split, subjects):
    folder.mkdir(exist_ok=True)
    rows = [{"question": "q", "subject": subject, "choices": ["x", "y"], "answer": 0} for subject in subjects]
    pq.write_table(pa.Table.from_pylist(rows, mmlu_parquet.SCHEMA), folder / f"{split}.parquet")


def test_what_cannot_be_scored_is_one_line_ahead_of_the_model(tmp_path, evaluate):
    folder, nowhere = tmp_path / "mine", tmp_path / "nowhere"
    with pytest.raises(InputError, match=f"^{folder}/test.parquet: expected a complete parquet file"):
        evaluate(nowhere, folder)
    write_questions(folder, "test", ["a", "a", "b"])
    with pytest.raises(InputError, match=f"^{folder}: test: expected 2 or more questions of 'b', found 1$"):
        evaluate(nowhere, folder)
    write_questions(folder, "test", ["a", "a", "b", "b"])
    with pytest.raises(InputError, match=f"^{folder}/dev.parquet: expected a complete parquet file"):
        evaluate(nowhere, folder, shots=2)
    write_questions(folder, "dev", ["a", "a", "b"])
    with pytest.raises(InputError, match=f"^{folder}: dev: expected 2 or more questions of 'b', the examples of num_f"):
        evaluate(nowhere, folder, shots=2)
