"""What the command `fastsparse` runs first: imports the package so that Ctrl-C ends it at any moment in one line.

A file of its own, because the package, NumPy and Numba, which take a second to import, may not be imported before it.
"""

from __future__ import annotations

import os
import signal
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> int:
    """Run the command line of this process and return its exit status."""
    asked = leave_when_interrupted()
    from fastsparse import cli

    if asked:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = cli.main()
    if asked:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what remains is the end of the interpreter
    return status


def leave_when_interrupted() -> bool:
    """Make Ctrl-C end the process at once, unless a parent had us ignore it; returns whether it does.

    For the time in which there is nothing to clean up. An exception would be lost where an extension module that is
    being imported calls Python, or become an error of another kind.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    return signal.getsignal(signal.SIGINT) is _leave


def _leave(number: int, frame: object) -> None:
    os.write(2, b"fastsparse: interrupted\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
