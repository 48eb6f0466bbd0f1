"""Test the way to use the int4 model that docs/formats.md shows."""

import pytest

from programs import quantize_options, run_script


@pytest.fixture(scope="module")
def int4_folder(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int4") / "checkpoint"
    options = quantize_options(ignore=["lm_head", "vision_tower"])
    result = run_script("quantize", "--checkpoint", untrained / "model", *options, "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_int4_folder_answers_a_prompt(int4_folder):
    result = run_script("generate", "--checkpoint", int4_folder, "--max-new-tokens", 8)
    assert result.returncode == 0, result.stderr
    assert 1 <= len(result.stdout.split()) <= 8


def test_a_folder_that_is_no_model_is_one_line(tmp_path):
    result = run_script("generate", "--checkpoint", tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path}: expected a folder with a model")
