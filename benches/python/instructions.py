"""Count the instructions that decoding an event takes, under callgrind: they repeat on any machine.

With ``--check FILE`` it fails where a count is more than 5 % above the one kept there; ``--keep
FILE`` writes them. Needs valgrind.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benches.python.replay import ROOT, WORK

BODIES = ("vllm_chat", "llamacpp", "tgi")
READS = ("frame", "65536")
FRAMES = 2_000
ROUNDS = (1, 6)
TOLERANCE = 1.05


def count(program: Path, body: str, read: str) -> float:
    """Return instructions per event: the difference that rounds make, set-up left out."""
    collected = []
    for rounds in ROUNDS:
        callgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        command = [*callgrind, str(program), body, str(FRAMES), read, str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or found is None:
            sys.exit(f"callgrind failed: {done.stderr.strip().splitlines()[-1:]}")
        collected.append(int(found[1]))
    fewer, more = collected
    return (more - fewer) / (ROUNDS[1] - ROUNDS[0]) / FRAMES


def measure(cargo: str) -> dict[str, float]:
    """Return instructions per event, by body and read."""
    command = [cargo, "build", "--release", "--locked", "--quiet"]
    package = ["--package", "worker-adapters-benches", "--example", "decode_rounds"]
    subprocess.run([*command, *package], cwd=ROOT, check=True)
    program = WORK.parent / "release" / "examples" / "decode_rounds"
    return {
        f"{body}/{'64KiB' if read != 'frame' else 'per_event'}": round(
            count(program, body, read), 1
        )
        for body in BODIES
        for read in READS
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--cargo", default="cargo")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("counting instructions needs valgrind, which is not installed")
    found = measure(arguments.cargo)
    for name, instructions in found.items():
        print(f"{name:24} {instructions:8.1f} instructions per event")
    if arguments.keep is not None:
        arguments.keep.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.check is not None:
        kept = json.loads(arguments.check.read_text(encoding="utf-8"))
        worse = [name for name, now in found.items() if now > kept.get(name, now) * TOLERANCE]
        if worse:
            sys.exit(f"more than 5 % above what {arguments.check} has: {', '.join(worse)}")


if __name__ == "__main__":
    main()
