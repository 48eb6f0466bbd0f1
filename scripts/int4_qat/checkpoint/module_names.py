"""Match the names of modules and parameters, whose parts are joined by dots."""

from collections.abc import Iterable, Sequence


def named_by(entries: Sequence[str], name: str) -> str | None:
    """Return the first entry that is a name, one of its parts, or consecutive parts of it; None if there is none."""
    return next((entry for entry in entries if f".{entry}." in f".{name}."), None)


def idle(entries: Sequence[str], modules: Iterable[str]) -> list[str]:
    """Return the entries that name none of the modules."""
    modules = list(modules)
    return [entry for entry in entries if not any(named_by([entry], module) for module in modules)]


def unreached_roots(names: Iterable[str], reached: set[str]) -> list[str]:
    """Return the topmost modules that have no reached parameter; `names` are those of all parameters."""
    names = set(names)
    used = {prefix for name in reached for prefix in prefixes(name)}
    return sorted({next(prefix for prefix in prefixes(name) if prefix not in used) for name in names - reached})


def prefixes(name: str) -> list[str]:
    """Return 'a', 'a.b', 'a.b.c' for 'a.b.c'."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
