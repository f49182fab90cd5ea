"""``python -m worker_adapters.cli``: the same command."""

import sys

from worker_adapters.cli import main

if __name__ == "__main__":
    sys.exit(main())
