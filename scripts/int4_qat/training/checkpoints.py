"""The checkpoints that a killed training goes on from: whole ones, of the same settings."""

from pathlib import Path

from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerState
from trl import SFTTrainer

from int4_qat.system import files
from int4_qat.system.errors import InputError
from int4_qat.training import callbacks, learned_grid


def prepare(folder: Path, wanted: dict) -> None:
    """Keep whole checkpoints of the same settings; all others are of no use and go."""
    record = folder / "settings.json"
    if folder.exists() and any(folder.iterdir()) and not record.exists():
        raise InputError(f"{folder}: expected checkpoints of this program, found something else")
    if folder.exists() and not (record.exists() and files.read_json(record) == wanted):
        print(f"{folder}: of other settings, of no use now")
        files.remove(folder)
    files.write_json(record, wanted)
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / callbacks.WHOLE).exists():
            files.remove(checkpoint)


def last_whole(folder: Path) -> Path | None:
    """The checkpoint with the most steps, if any."""
    return max(folder.glob("checkpoint-*"), key=steps_of, default=None)


def steps_of(checkpoint: Path) -> int:
    """How many steps were done when it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def take_over(trainer: SFTTrainer, checkpoint: Path) -> None:
    """Bring a trainer to the end of a training that was done when it was stopped: resuming would take a step more."""
    set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
    learned_grid.load(trainer.model.get_base_model(), checkpoint)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
