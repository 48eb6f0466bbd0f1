"""Test the texts that each arm trains on: each mistake is one line; only used texts are downloaded and checked."""

import copy
import shlex
from pathlib import Path

import pytest

from configs import CARDS_ARMS, SCHEMA
from configs import with_cards_arms as changed
from int4_qat.config import named_texts, recipes, workflow_config
from workflows import snakemake, write_config

TRAIN, TEST = CARDS_ARMS["texts"]["wikitext_train"], CARDS_ARMS["evaluation"]["divergence"]["texts"]["wikitext"]
CHATS = {"source": TRAIN["source"], "files": "chats/*.jsonl", "messages": "conversation"}
TEXTS = CARDS_ARMS["texts"] | {"chats": CHATS, "test": TEST}


def trained_on(weights=None, **arms):
    """Return the card's config with more texts: `weights` are those of all arms, `arms` those of single arms."""
    config = copy.deepcopy(CARDS_ARMS)
    config["texts"] = TEXTS
    distillation = {"weight": 1, "tokens": "all", "temperature": 1}
    config["finetune"] |= {"backend": "transformers", "distillation": distillation, "packing": True}
    config["finetune"]["texts"] = weights or {"questions": 1}
    for arm, texts in arms.items():
        config["finetune"]["arms"][arm]["texts"] = texts
    return config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            trained_on({"c4": 1}),
            "finetune.texts.c4: expected one of questions, wikitext_train, chats, test, found 'c4'",
        ),
        (
            trained_on(qat={"c4": 1}),
            "finetune.arms.qat.texts.c4: expected one of questions, wikitext_train, chats, test, found 'c4'",
        ),
        (
            trained_on({"questions": 1, "test": 1}),
            "finetune.texts.test: expected a text with other files than evaluation.divergence.texts.wikitext, "
            "found 'test'",
        ),
        (
            trained_on(lora={"test": 1}),
            "finetune.arms.lora.texts.test: expected a text with other files than "
            "evaluation.divergence.texts.wikitext, found 'test'",
        ),
        (trained_on({"questions": 0}), "finetune.texts.questions: 0 is less than or equal to the minimum of 0"),
        (changed(["finetune", "texts"], {}), "finetune.texts: {} should be non-empty"),
        (
            changed(["texts", "wikitext_train", "messages"], "conversation"),
            "texts.wikitext_train: expected `column` or `messages`, not both, found",
        ),
        (
            changed(["texts", "wikitext_train", "role"], "x"),
            "texts.wikitext_train: expected keys that exist, fou",
        ),
        (
            changed(["evaluation", "divergence", "texts", "wikitext", "messages"], "conversation"),
            "evaluation.divergence.texts.wikitext: expected keys that exist, found 'messages'",
        ),
    ],
)
def test_each_mistake_is_one_line(config, expected):
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line.startswith(expected)
    assert "\n" not in line


def test_the_texts_of_arms_in_use_belong_to_the_settings_of_results():
    config = trained_on(qat={"chats": 2, "questions": 1})
    config["finetune"]["arms"]["unused"] = {"quantization": None, "texts": {"wikitext_train": 1}}
    config["variants"] = ["base-bf16", "base-int4", "lora-int4", "qat-int4"]
    assert workflow_config.problems(config, SCHEMA) == []
    assert named_texts.used(config) == {"finetune.texts": ["chats", "questions"], "calibration.texts": []}
    assert recipes.settings_of(config, "gemma-3-12b-it")["texts"] == {"chats": CHATS}


def planned_commands(config, tmp_path, *targets):
    """Return the arguments of each command in a dry run, by program."""
    options = ["--dry-run", "--printshellcmds", "--directory", tmp_path / "run"]
    result = snakemake(*targets, *options, "--configfile", write_config(config, tmp_path / "mine.yaml"))
    assert result.returncode == 0, result.stderr
    found = {}
    for line in result.stdout.splitlines():
        if "/scripts/" in line and ".py" in line:
            words = shlex.split(line.partition(" > ")[0].partition(" 2>&1")[0])
            place = next(place for place, word in enumerate(words) if word.endswith(".py"))
            found.setdefault(Path(words[place]).stem, []).append(words[place + 1 :])
    return found


def words_of(option, words):
    """Return the values of an option in a command's arguments."""
    rest = words[words.index(option) + 1 :]
    return rest[: next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))]


def test_an_arm_reads_its_own_texts(tmp_path):
    config = trained_on(qat={"chats": 2, "questions": 1, "wikitext_train": 0.5})
    config["calibration"]["texts"] = ["chats", "questions"]
    folder = "results/gemma-3-12b-it"
    commands = planned_commands(config, tmp_path, f"{folder}/base-gptq/calibrated", f"{folder}/qat/adapter")
    (trained,), (calibrated,) = commands["finetune"], commands["calibrate"]
    questions, chats, text = f"{folder}/train.parquet", "resources/texts/chats.jsonl", "wikitext_train.txt"
    expected = [f"chats={chats}", f"questions={questions}", f"wikitext_train=resources/texts/{text}"]
    assert words_of("--texts", trained) == expected
    assert words_of("--texts", calibrated) == [chats, questions]
    brought = {words_of("--output", words)[0]: words for words in commands["download_text"]}
    assert brought.keys() == {chats, f"resources/texts/{text}"}
    assert "--messages=conversation" in brought[chats]
    (trained,) = planned_commands(config, tmp_path, f"{folder}/lora/adapter")["finetune"]
    assert words_of("--texts", trained) == [f"questions={questions}"]


def test_what_is_trained_or_calibrated_on_is_checked(tmp_path):
    def checked(config):
        targets = ["resources/text_contamination.json", "resources/contamination.json"]
        commands = planned_commands(config, tmp_path, *targets)
        (words,), (counted,) = commands["check_texts"], commands["check_contamination"]
        held_out = [f"{name}=resources/texts/{name}.txt" for name in ("gsm8k", "wikitext")]
        assert words_of("--held-out", words) == held_out
        return [words_of("--training", words), words_of("--calibration", words), words_of("--texts", counted)]

    questions = "questions=resources/mmlu_train/auxiliary_train.parquet"
    general, chats = "wikitext_train=resources/texts/wikitext_train.txt", "chats=resources/texts/chats.jsonl"
    assert checked(CARDS_ARMS) == [[questions], [questions, general], [general]]
    config = trained_on({"wikitext_train": 1}, qat={"chats": 1})
    config["calibration"]["texts"] = ["wikitext_train"]
    assert checked(config) == [[chats, general], [general], [chats, general]]
    config["variants"] = ["base-bf16", "base-int4", "qat-int4"]
    assert checked(config) == [[chats], [], [chats]]


def test_a_pattern_that_matches_no_local_file_is_one_line(tmp_path):
    (tmp_path / "wiki" / "en").mkdir(parents=True)
    (tmp_path / "wiki" / "en" / "train.txt").write_text("text")
    entry = {"source": str(tmp_path / "wiki"), "files": "valid*.txt"}
    (line,) = workflow_config.problems(changed(["texts", "wikitext_train"], entry), SCHEMA)
    expected = f"expected a pattern that matches files in {tmp_path}/wiki, found 'valid*.txt'"
    assert line == f"texts.wikitext_train.files: {expected}"
    entry["files"] = "*train.txt"
    assert workflow_config.problems(changed(["texts", "wikitext_train"], entry), SCHEMA) == []
