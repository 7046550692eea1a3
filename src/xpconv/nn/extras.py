"""Libraries that only the extras install."""

from importlib import import_module
from typing import Any


def require(module: str, *, extra: str) -> Any:
    """Import a module that an extra brings, or say in one line what installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        library = module.partition(".")[0]
        if missing.name is None or missing.name.partition(".")[0] != library:
            raise
        raise ModuleNotFoundError(f'{library} is not installed; pip install "xpconv[{extra}]"', name=library) from None
