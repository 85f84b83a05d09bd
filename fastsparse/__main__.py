"""`python -m fastsparse`: the command `fastsparse`."""

import sys

from fastsparse.cli import main

if __name__ == "__main__":
    sys.exit(main())
