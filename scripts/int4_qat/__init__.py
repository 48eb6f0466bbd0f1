"""What the workflow's scripts share: one module for each fact that more than one of them needs."""
