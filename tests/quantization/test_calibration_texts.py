"""Test which windows of which texts a calibration uses."""

import pandas as pd
import pytest
import torch

from int4_qat.quantization import calibration_texts
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization

LENGTH, SAMPLES = 32, 6


def read(paths, llama, samples=SAMPLES, seed=0, length=LENGTH):
    return calibration_texts.read(paths, tokenization.load_tokenizer(llama), samples, length, seed)


def test_each_text_has_an_equal_share_and_each_window_its_bos(llama, general_text, texts):
    tokenizer = tokenization.load_tokenizer(llama)
    found = read([texts, general_text], llama, samples=7, length=64)  # longer than a question
    assert found.shape == (7, 64)
    assert (found[:, 0] == tokenizer.bos_token_id).all()
    assert (found[:, 1:] != tokenizer.bos_token_id).all()
    marks = tokenizer.convert_tokens_to_ids("<start_of_turn>")
    assert (found == marks).any(1).tolist() == [True] * 4 + [False] * 3


def test_a_seed_draws_the_same_windows_and_another_one_others(llama, general_text, texts):
    assert torch.equal(read([texts, general_text], llama), read([texts, general_text], llama))
    assert not torch.equal(read([texts, general_text], llama), read([texts, general_text], llama, seed=1))


def test_windows_are_those_of_the_text(llama, general_text):
    tokenizer = tokenization.load_tokenizer(llama)
    whole = tokenizer(general_text.read_text(), add_special_tokens=False)["input_ids"]
    starts = {tuple(whole[at : at + LENGTH - 1]) for at in range(0, len(whole), LENGTH - 1)}
    found = read([general_text], llama)
    assert {tuple(window) for window in found[:, 1:].tolist()} <= starts
    assert len({tuple(window) for window in found.tolist()}) == SAMPLES


def test_too_little_text_is_refused(llama, tmp_path):
    (tmp_path / "short.txt").write_text(" of a")
    with pytest.raises(InputError, match=r"short\.txt: expected 6 windows of 32 tokens to calibrate on, found 0"):
        read([tmp_path / "short.txt"], llama)
    pd.DataFrame({"text": ["of"]}).to_parquet(tmp_path / "short.parquet")
    with pytest.raises(InputError, match=r"short\.parquet: expected 6 windows"):
        read([tmp_path / "short.parquet"], llama)
