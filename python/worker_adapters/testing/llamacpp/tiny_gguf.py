"""Write a tiny GGUF model for testing clients of a llama.cpp server.

The weights are pseudo-random with a fixed seed, so the file is reproducible and needs no
download. The output head is random too, plus one rank-one term per vocabulary entry that makes
each token prefer one known successor. That gives greedy decoding a readable, predictable text
(see `CHAINS`) with multi-byte characters spelled as single-byte tokens, while sampling with a
temperature wanders off into the rest of the vocabulary, invalid UTF-8 included.

    python -m worker_adapters.testing.llamacpp.tiny_gguf tiny.gguf

Prompts worth knowing (greedy):

- ``Once upon a time``: an endless cycle through ``CHAINS["cycle"]``
- ``say hello``: ``CHAINS["finite"]``, then the end-of-sequence token
- any chat request: ``CHAINS["finite"]``, then the end-of-sequence token
- ``say end``: the end-of-sequence token at once
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Matrix: TypeAlias = npt.NDArray[np.float32]

__all__ = ["CHAINS", "ModelKind", "cache_dir", "tiny_model", "write_model"]

ModelKind: TypeAlias = Literal["generate", "rerank"]

BOS: Final = "<s>"
EOS: Final = "</s>"
EOT: Final = "<|end|>"
ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
# Single tokens, so that a request can force one tool call with
# "logit_bias": [["<tool_call>", 9], [2, 11]] (2 is </s>); the engine's grammar does the rest.
TOOL_TAGS: Final = ("<tool_call>", "</tool_call>")

CHAINS: Final[dict[str, tuple[str, ...]]] = {
    "cycle": (
        *("▁time", "▁there", "▁was", "▁a", "▁tiny", "▁model", ",", "▁its", "▁name"),
        *("▁is", "▁caf", "b:c3 a9", "▁and", "▁it", "▁likes", "▁", "b:f0 9f 99 82"),
        *(";", "▁every", "▁word", "▁of", "b:e4 b8 ad", "▁text", "▁comes"),
        *("▁from", "▁one", "▁token", "▁at", "▁time"),
    ),
    "finite": ("▁hello", "▁world", "!", "▁this", "▁reply", "▁ends", "▁here", ".", EOS),
}
"""Texts the model speaks greedily: one item per token, ``b:xx xx`` for raw byte tokens.

``▁`` is SentencePiece's space. A token has one successor, so none appears twice across the
chains except as a chain's first and last.
"""

EXTRA_LINKS: Final = (
    ("▁end", EOS),
    ("<|assistant|>", "\n"),
    ("\n", "▁hello"),
    ("</tool_call>", EOT),
)
MORE_WORDS: Final = (
    "the say once upon end you are an assistant system user what hi tell me more "
    "answer question weather city get name arguments tool call function true false "
    "number string search document query stop"
)
CHAT_TEMPLATE: Final = (
    "{% if tools %}<|system|>\nYou can call these tools:\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call> to call one.'
    "<|end|>\n{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.content %}{{ message.content }}{% endif %}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    '<tool_call>{"name": {{ call.function.name | tojson }}, '
    '"arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

DEFAULT_SEED: Final = 20
DEFAULT_LAYERS: Final = 2
DEFAULT_CTX: Final = 2048
# How strongly a token prefers its successor over the random rest of the vocabulary.
_STRENGTH: Final = 0.12
_EMBEDDING, _HEADS, _KV_HEADS, _FEED_FORWARD = 64, 4, 2, 128
_HEAD_SIZE: Final = _EMBEDDING // _HEADS


class _Vocabulary(NamedTuple):
    """Token texts with their scores and GGUF types; and the number that each text has."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    numbers: dict[str, int]


def tiny_model(
    kind: ModelKind = "generate",
    *,
    layers: int = DEFAULT_LAYERS,
    n_ctx_train: int = DEFAULT_CTX,
    seed: int = DEFAULT_SEED,
) -> Path:
    """Path of the model with these parameters, written once into the user's cache directory.

    ``layers`` makes it slower (32: about 1 ms a token); ``kind="rerank"`` adds a classifier
    head. The file appears atomically, so processes may ask at the same time. Raises ImportError
    when it must be written and ``gguf`` or ``numpy`` is missing, OSError when it cannot be.
    """
    # The generator's own text is part of the name: a changed generator never meets an old file.
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = cache_dir() / f"tiny-{kind}-{layers}l-{n_ctx_train}c-{seed}-{source}.gguf"
    if path.exists():
        return path
    handle, name = tempfile.mkstemp(prefix=path.stem + ".", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        write_model(part, kind=kind, layers=layers, n_ctx_train=n_ctx_train, seed=seed)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def cache_dir() -> Path:
    """The writable directory that holds generated models, created when missing.

    ``$XDG_CACHE_HOME/worker-adapters/models`` (``~/.cache`` by default), else a private
    directory below the system's temporary one. Raises OSError when neither can be used.
    """
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    wanted = Path(base) / "worker-adapters" / "models"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass
    else:
        if os.access(wanted, os.W_OK):
            return wanted
    user = os.getuid() if hasattr(os, "getuid") else 0
    private = Path(tempfile.gettempdir()) / f"worker-adapters-models-{user}"
    private.mkdir(mode=0o700, exist_ok=True)
    # Anyone may create names in a shared temporary directory: never load a model planted there.
    if hasattr(os, "getuid") and private.lstat().st_uid != user:
        raise PermissionError(f"{private} belongs to another user")
    return private


def write_model(
    path: Path,
    *,
    kind: ModelKind = "generate",
    layers: int = DEFAULT_LAYERS,
    n_ctx_train: int = DEFAULT_CTX,
    seed: int = DEFAULT_SEED,
) -> int:
    """Write the model to ``path`` and return the size of its vocabulary.

    Raises ImportError without ``gguf`` and ``numpy``.
    """
    import gguf
    import numpy as np

    rng = np.random.default_rng(seed)
    vocabulary = _vocabulary()
    arch = "qwen3" if kind == "rerank" else "llama"
    writer: Any = gguf.GGUFWriter(path, arch)
    _write_metadata(writer, vocabulary, kind, layers, n_ctx_train)

    def matrix(rows: int, columns: int, deviation: float) -> Matrix:
        return (rng.standard_normal((rows, columns)) * deviation).astype(np.float32)

    def put(name: str, values: Matrix, *, half: bool = True) -> None:
        writer.add_tensor(name, values.astype(np.float16 if half else np.float32))

    # Embeddings of equal length and small blocks: the residual stream stays close to the
    # current token's embedding, so the output head can recognise it.
    embedding = matrix(len(vocabulary.tokens), _EMBEDDING, 1.0)
    embedding *= np.sqrt(_EMBEDDING) / np.linalg.norm(embedding, axis=1, keepdims=True)
    small = 0.05 / float(np.sqrt(max(1, layers / 2)))
    output = matrix(len(vocabulary.tokens), _EMBEDDING, 0.02)
    for source, target in _successors(vocabulary, rng).items():
        output[target] += _STRENGTH * embedding[source]
    # Never prefer what must not be emitted by accident.
    for name in ("<unk>", BOS, *ROLES, *TOOL_TAGS):
        row = vocabulary.numbers[name]
        output[row] = -0.01 * np.abs(output[row])

    put("token_embd.weight", embedding)
    for layer in range(layers):
        block = f"blk.{layer}."
        put(block + "attn_norm.weight", np.ones(_EMBEDDING, np.float32), half=False)
        put(block + "attn_q.weight", matrix(_HEADS * _HEAD_SIZE, _EMBEDDING, 0.05))
        put(block + "attn_k.weight", matrix(_KV_HEADS * _HEAD_SIZE, _EMBEDDING, 0.05))
        put(block + "attn_v.weight", matrix(_KV_HEADS * _HEAD_SIZE, _EMBEDDING, 0.05))
        put(block + "attn_output.weight", matrix(_EMBEDDING, _HEADS * _HEAD_SIZE, small))
        if arch == "qwen3":
            put(block + "attn_q_norm.weight", np.ones(_HEAD_SIZE, np.float32), half=False)
            put(block + "attn_k_norm.weight", np.ones(_HEAD_SIZE, np.float32), half=False)
        put(block + "ffn_norm.weight", np.ones(_EMBEDDING, np.float32), half=False)
        put(block + "ffn_gate.weight", matrix(_FEED_FORWARD, _EMBEDDING, 0.05))
        put(block + "ffn_up.weight", matrix(_FEED_FORWARD, _EMBEDDING, 0.05))
        put(block + "ffn_down.weight", matrix(_EMBEDDING, _FEED_FORWARD, small))
    put("output_norm.weight", np.ones(_EMBEDDING, np.float32), half=False)
    put("output.weight", output)
    if kind == "rerank":
        put("cls.output.weight", matrix(2, _EMBEDDING, 0.1), half=False)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(vocabulary.tokens)


def _write_metadata(
    writer: Any, vocabulary: _Vocabulary, kind: ModelKind, layers: int, n_ctx_train: int
) -> None:
    import gguf

    index = vocabulary.numbers
    writer.add_name(f"tiny-{kind}")
    writer.add_description("pseudo-random weights for client tests; not a language model")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_key_length(_HEAD_SIZE)
    writer.add_value_length(_HEAD_SIZE)
    writer.add_rope_dimension_count(_HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(index[BOS])
    writer.add_eos_token_id(index[EOS])
    writer.add_eot_token_id(index[EOT])
    writer.add_unk_token_id(index["<unk>"])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if kind == "rerank":
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_sep_token_id(index[EOS])
        writer.add_classifier_output_labels(["yes", "no"])  # softmax; the score is "yes"
    else:
        writer.add_chat_template(CHAT_TEMPLATE)


def _expand(chain: Sequence[str]) -> list[str]:
    """The chain with its ``b:`` shorthand turned into single byte tokens."""
    tokens: list[str] = []
    for item in chain:
        if item.startswith("b:"):
            tokens += [f"<0x{int(pair, 16):02X}>" for pair in item[2:].split()]
        else:
            tokens.append(item)
    return tokens


def _vocabulary() -> _Vocabulary:
    """Specials, the 256 bytes, single characters, and the words with all their prefixes."""
    from gguf import TokenType

    vocabulary = _Vocabulary([], [], [], {})

    def add(text: str, score: float, kind: TokenType) -> None:
        if text not in vocabulary.numbers:
            vocabulary.numbers[text] = len(vocabulary.tokens)
            vocabulary.tokens.append(text)
            vocabulary.scores.append(float(score))
            vocabulary.types.append(int(kind))

    add("<unk>", 0, TokenType.UNKNOWN)
    for text in (BOS, EOS, EOT, *ROLES):
        add(text, 0, TokenType.CONTROL)
    for text in TOOL_TAGS:
        add(text, 0, TokenType.USER_DEFINED)
    for byte in range(256):
        add(f"<0x{byte:02X}>", 0, TokenType.BYTE)
    words = [word for chain in CHAINS.values() for word in chain if not word.startswith("b:")]
    words += ["▁" + word for word in MORE_WORDS.split()]
    words = [word for word in words if word not in vocabulary.numbers]
    for character in ["▁", "\n", *map(chr, range(33, 127))]:
        add(character, -1000, TokenType.NORMAL)
    # A SentencePiece merge needs every step on the way, hence the prefixes; longer pieces score
    # better, so whole words win.
    for word in words:
        for length in range(2, len(word) + 1):
            add(word[:length], -200 + length, TokenType.NORMAL)
    return vocabulary


def _successors(vocabulary: _Vocabulary, rng: np.random.Generator) -> dict[int, int]:
    """One preferred next token for every token: the chains, then a random pairing.

    Every token has at most one preferred predecessor too, which keeps the rows of the output
    head nearly orthogonal and so the preferred token on top.
    """
    from gguf import TokenType

    index, types = vocabulary.numbers, vocabulary.types
    follows: dict[int, int] = {}
    for chain in CHAINS.values():
        tokens = _expand(chain)
        for left, right in pairwise(tokens):
            follows[index[left]] = index[right]
    for left, right in EXTRA_LINKS:
        follows[index[left]] = index[right]
    special = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    taken = set(follows.values()) | {i for i, kind in enumerate(types) if kind in special}
    sources = [i for i in range(len(types)) if i not in follows]
    targets = [i for i in range(len(types)) if i not in taken]
    rng.shuffle(targets)
    follows.update(zip(sources, targets, strict=False))
    return follows


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m worker_adapters.testing.llamacpp.tiny_gguf PATH``: write the model."""
    parser = argparse.ArgumentParser(
        description="Write a tiny, reproducible GGUF model for testing clients of llama.cpp."
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--kind", choices=get_args(ModelKind), default="generate")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--n-ctx-train", type=int, default=DEFAULT_CTX)
    parser.add_argument("--layers", type=int, default=DEFAULT_LAYERS, help="32: 1 ms a token")
    options = parser.parse_args(arguments)
    size = write_model(
        options.path,
        kind=options.kind,
        layers=options.layers,
        n_ctx_train=options.n_ctx_train,
        seed=options.seed,
    )
    digest = hashlib.sha256(options.path.read_bytes()).hexdigest()
    print(f"{options.path}: {options.path.stat().st_size} bytes, {size} tokens, sha256 {digest}")


if __name__ == "__main__":
    main()
