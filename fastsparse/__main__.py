"""`python -m fastsparse`: the command `fastsparse`."""

import sys

from fastsparse_command import main

if __name__ == "__main__":
    sys.exit(main())
