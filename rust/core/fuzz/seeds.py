"""Write the first corpus of each fuzz target, out of the repository's vectors and captures.

Run without arguments; ``seeds/TARGET/`` beside this file is where a fuzzer begins. A seed is named
by its content, so running it again changes nothing. A target reads a few bytes before its proper
input, as its ``fuzz_target!`` says: those are chosen here.
"""

import base64
import hashlib
import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[2] / "tests"
LONGEST = 16 << 10
"""Longer recordings say the same over and over."""

SETUPS = {
    "llamacpp": (0, 1),
    "openai": (2, 3),
    "vllm": (2, 3, 13),
    "sglang": (4, 5, 6),
    "tgi": (7, 8),
    "triton": (9, 10, 11),
    "field_map": (12, 13, 14),
}
"""The places of each dialect's setups in ``SETUPS`` of ``src/lib.rs``."""


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of vectors."""
    for line in (TESTS / "vectors" / name).read_text(encoding="utf-8").splitlines():
        if line:
            yield json.loads(line)


def captures() -> Iterator[tuple[str, bytes]]:
    """Yield every recorded response, with its engine."""
    for path in sorted((TESTS / "captures").glob("*/*.http")):
        yield path.parent.name, path.read_bytes()


def body_of(response: bytes) -> bytes:
    """Take the body out of a recorded response, its chunks joined."""
    head, _, body = response.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return body
    joined = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            break
        joined += rest[:length]
        body = rest[length + 2 :]
    return joined


def of_sse() -> Iterator[bytes]:
    """Yield a number that says how to cut, and an event stream."""
    for row in rows("sse.jsonl"):
        yield b"\7" + base64.b64decode(row["input_b64"])
    for _, response in captures():
        yield b"\7" + body_of(response)


def of_json() -> Iterator[bytes]:
    """Yield documents."""
    for row in rows("json_fields.jsonl"):
        yield base64.b64decode(row["doc_b64"])
    for _, response in captures():
        for line in body_of(response).splitlines():
            yield line.removeprefix(b"data:").strip()


def of_frames() -> Iterator[bytes]:
    """Yield a setup, whether the body is whole, and a body."""
    for engine, response in captures():
        for setup in SETUPS[engine]:
            yield bytes([setup, 0]) + body_of(response)
    for row in rows("stream_rules.jsonl"):
        for setup in SETUPS[row["engine"]]:
            yield bytes([setup, 0 if row.get("complete", True) else 1]) + row["body"].encode()
    for row in rows("json_fields.jsonl"):
        yield b"\2\0data: " + base64.b64decode(row["doc_b64"]) + b"\n\ndata: [DONE]\n\n"


def of_response() -> Iterator[bytes]:
    """Yield a setup, what happens when, the status, and a body."""
    for number, seed in enumerate(of_frames()):
        # One in four answers with an error status.
        setup = 32 if number % 4 == 0 else 0
        yield seed[:1] + bytes([number % 251, setup]) + seed[2:]


def of_redact() -> Iterator[bytes]:
    """Yield texts."""
    for row in rows("secrets.jsonl"):
        for text in [row["text"], *row.get("records", ())]:
            yield text.encode()


def of_redact_known() -> Iterator[bytes]:
    """Yield the length of a secret, the secret and a text."""
    for row in rows("secrets.jsonl"):
        for known in row.get("known_secrets", ()):
            secret = known.encode()[:39]
            yield bytes([len(secret)]) + secret + row["text"].encode()


def of_redact_time() -> Iterator[bytes]:
    """Yield what is repeated."""
    for row in rows("secrets.jsonl"):
        yield row["text"].encode()


def of_egress() -> Iterator[bytes]:
    """Yield an IPv4 and an IPv6 address, a policy, and a URL."""
    for row in rows("urls.jsonl"):
        resolved = [row.get("resolve", {}), row.get("resolve_second", {})]
        texts = [text for names in resolved for answer in names.values() for text in answer]
        answers = [ipaddress.ip_address(text) for text in texts]
        v4 = next((a for a in answers if a.version == 4), ipaddress.ip_address("10.20.1.5"))
        v6 = next((a for a in answers if a.version == 6), ipaddress.ip_address("2606:4700::1"))
        for which in (0x00, 0x15, 0x6A, 0xFF):
            yield v4.packed + v6.packed + bytes([which]) + row["url"].encode()


def of_config() -> Iterator[bytes]:
    """Yield a kind of configuration and one of it."""
    for row in rows("contract.jsonl"):
        if row["model"] == "TaskRequest":
            yield b"\0" + row["json"].encode()
    policies = json.loads((TESTS / "vectors/urls_policies.json").read_text(encoding="utf-8"))
    for policy in policies.values():
        if isinstance(policy, dict) and "allow" in policy:
            yield b"\1" + "\n".join(policy["allow"]).encode()
    yield b"\1https://*:*\nhttp://[fd00::/8]:*\nhttp://10.0.0.0/8\nhttp://a.example:1"
    for row in rows("stream_rules.jsonl"):
        options = [f"{name}={value}" for name, value in row.get("options", {}).items()]
        yield b"\2" + "\n".join([row["engine"], *options, row["body"]]).encode()


def of_http1() -> Iterator[bytes]:
    """Yield a number that says how to cut, the method, the limits and what it is, and that."""
    for _, response in captures():
        yield b"\7\0" + response
        yield b"\7\2" + response
        head, _, body = response.partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            yield b"\7\4" + body


def main() -> None:
    """Write the corpora."""
    targets = {
        name.removeprefix("of_"): make for name, make in globals().items() if name.startswith("of_")
    }
    for target, make in targets.items():
        folder = HERE / "seeds" / target
        folder.mkdir(parents=True, exist_ok=True)
        for seed in make():
            if 0 < len(seed) <= LONGEST:
                (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        print(f"{target}: {sum(1 for _ in folder.iterdir())} inputs")


if __name__ == "__main__":
    main()
