"""The workflow's own code; what is here runs before any of it."""

import logging

# torchao's wheel holds libraries for other machines, and says of each that it cannot be loaded; it also registers enums
# in a way that torch calls deprecated. Neither is news for who watches a run.
_NO_NEWS = {"torchao": "Failed to load", "torch.utils._pytree": "%s is an Enum subclass"}


def _has_news(record: logging.LogRecord) -> bool:
    return not record.msg.startswith(_NO_NEWS[record.name])


for _name in _NO_NEWS:
    logging.getLogger(_name).addFilter(_has_news)
