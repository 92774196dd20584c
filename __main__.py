"""`python -m sedialect` is the command `sedialect`."""

import sys

if __name__ == "__main__":
    from .sedialect_core.cli import main

    sys.exit(main())
