"""The command line: ``xpconv``, and the same as ``python -m xpconv``."""

import sys
from importlib.util import find_spec

_NEEDED = ("typer", "rich", "matplotlib", "PIL", "sklearn")


def main() -> None:
    """Run the command line, or say in one line what installs it."""
    if any(find_spec(library) is None for library in _NEEDED):
        sys.exit('xpconv\'s command line needs more: pip install "xpconv[cli]"')
    from xpconv.cli import app

    app(prog_name="xpconv")


if __name__ == "__main__":
    main()
