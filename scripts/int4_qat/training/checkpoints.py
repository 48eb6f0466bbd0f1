"""Manage the checkpoints from which a killed training goes on: whole ones, with the same settings."""

from pathlib import Path

from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerState
from trl import SFTTrainer

from int4_qat.system import files
from int4_qat.system.errors import InputError
from int4_qat.training import callbacks, learned_grid


def prepare(folder: Path, wanted: dict) -> None:
    """Keep whole checkpoints with the same settings, and remove all others, which are of no use.

    Raise InputError if the folder holds files but no record of settings.
    """
    record = folder / "settings.json"
    found = [path for path in folder.glob("*") if not path.name.startswith(".")]  # a killed start leaves hidden files
    if found and not record.exists():
        raise InputError(f"{folder}: expected checkpoints of finetune, found other files")
    if found and files.read_json(record) != wanted:
        print(f"{folder}: removing checkpoints of other settings")
        files.remove(folder)
    files.write_json(record, wanted)
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / callbacks.WHOLE).exists():
            files.remove(checkpoint)


def last_whole(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps, or None if there is none."""
    return max(folder.glob("checkpoint-*"), key=steps_of, default=None)


def steps_of(checkpoint: Path) -> int:
    """Return how many steps were done when a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def take_over(trainer: SFTTrainer, checkpoint: Path) -> None:
    """Bring a trainer to the end of a training that was stopped when done; resuming would take another step."""
    set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
    learned_grid.load(trainer.model.get_base_model(), checkpoint)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
