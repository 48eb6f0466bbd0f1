"""Test that outputs are written atomically and that a program run by hand deletes nothing of the user's."""

import pytest

from int4_qat.system import files
from int4_qat.system.errors import InputError
from programs import run_script


def test_a_folder_with_files_is_not_replaced(tmp_path):
    model, mine = tmp_path / "model", tmp_path / "mine"
    for folder in (model, mine):
        folder.mkdir()
    (mine / "thesis.tex").write_text("chapter one")
    result = run_script("link_base", "--model", model, "--output", mine)
    assert result.returncode == 1
    assert result.stderr == f"error: {mine}: expected a new or empty folder, found one with 'thesis.tex'\n"
    assert (mine / "thesis.tex").read_text() == "chapter one"


def test_a_folder_of_known_names_is_replaced(tmp_path):
    folder = tmp_path / "mmlu"
    folder.mkdir()
    (folder / "test.parquet").write_text("old")
    with files.whole(folder, ["test.parquet", "dev.parquet"]) as unfinished:
        unfinished.mkdir()
        (unfinished / "dev.parquet").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["dev.parquet"]
    with pytest.raises(InputError, match=r"found one with 'dev\.parquet'"), files.whole(folder, ["test.parquet"]):
        pass


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    """A kill just before the new file takes the old one's place leaves the old one."""
    files.write_json(tmp_path / "settings.json", "old")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            files.write_json(tmp_path / "settings.json", "new")
    assert files.read_json(tmp_path / "settings.json") == "old"
    files.write_json(tmp_path / "settings.json", "new")
    assert files.read_json(tmp_path / "settings.json") == "new"
