"""Write or check the expected events; exits with 1 if the check finds anything."""

import argparse
import sys

from tests.captures.derive_events import check, write


def main(argv: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.captures.derive_events", description="Expected events of captures."
    )
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    arguments = parser.parse_args(argv)
    if not __debug__:
        parser.error("this package is made of assertions: run it without -O")
    if not arguments.check:
        write()
        return 0
    wrong = list(check())
    for line in wrong:
        sys.stdout.write(f"{line}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
