"""`python -m sedialect` is the command `sedialect`."""

import sys

if __name__ == "__main__":
    from .cli.main import main

    sys.exit(main())
