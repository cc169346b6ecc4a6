"""``python -m brickwork`` is the ``brickwork`` command."""

import sys

from brickwork.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
