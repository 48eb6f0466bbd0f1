"""The workflow's own code; what is here runs before any of it."""

import logging

# torchao's wheel holds libraries for other machines, and says of each that it cannot be loaded; it also registers enums
# in a way that torch calls deprecated. Neither is news for who watches a run.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
