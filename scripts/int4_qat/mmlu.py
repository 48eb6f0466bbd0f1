"""What MMLU is: its splits and the letters of its choices."""

LETTERS = ("A", "B", "C", "D")
SPLITS = ("auxiliary_train", "dev", "validation", "test")
TRAIN_SPLIT, *EVALUATION_SPLITS = SPLITS
