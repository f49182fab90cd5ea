"""What to start a server with, or to tell an adapter, so that something lacking is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["hint"]

_HINTS: Final[Mapping[str, Mapping[str, str]]] = {
    "llamacpp": {
        "slots": "--slots (on unless --no-slots), or --metrics",
        "metrics": "--metrics",
        "embedding": "--embeddings --pooling mean --kv-unified",
        "rerank": "--reranking with a reranking model",
        "chat": "--jinja, and a model with a chat template",
        "tools": "--jinja, and a model with a chat template that has tools",
        "messages.image": "--mmproj FILE",
        "lora": "another engine: the adapter for llama.cpp leaves LoRA to the server's own --lora",
    },
    "vllm": {
        "slots": "VLLM_SERVER_DEV_MODE=1 in the environment",
        "cancel": "--enable-scale-out",
        "abort": "--enable-scale-out",
        "cached_tokens": "--enable-prompt-tokens-details",
        "chat": "--chat-template FILE",
        "tools": "--enable-auto-tool-choice --tool-call-parser NAME",
        "reasoning": "--reasoning-parser NAME",
        "lora": "--enable-lora --lora-modules NAME=PATH",
        "priority": "--scheduling-policy priority",
        "embedding": "a server of its own: --runner pooling --convert embed",
        "rerank": "a server of its own, with a reranking model: --runner pooling",
        "determinism": "VLLM_BATCH_INVARIANT=1 in the environment, where the hardware can",
    },
    "sglang": {
        "metrics": "--enable-metrics",
        "cached_tokens": "--enable-cache-report (for the chat route)",
        "chat": "--chat-template NAME",
        "tools": "--tool-call-parser NAME",
        "tool_choice": "--tool-call-parser NAME",
        "reasoning": "--reasoning-parser NAME",
        "lora": "--enable-lora --lora-paths NAME=PATH",
        "priority": "--enable-priority-scheduling",
        "data_parallel_rank": "--dp-size N",
        "determinism": "--enable-deterministic-inference",
        "seed": "--enable-deterministic-inference",
        "embedding": "a server of its own: --is-embedding",
        "rerank": "a server of its own, with a reranking model: --is-embedding",
        "incremental_streaming_output": "--incremental-streaming-output",
    },
    "tgi": {
        "lora": "--lora-adapters NAME=PATH, and lora_adapters= of the adapter",
        "slots": "--prometheus-port (metrics are on unless switched off)",
        "tools": "the engine `openai` on the same server",
    },
    "triton": {
        "slots": "slots= of the adapter; Triton does not tell",
        "cancel": "an instance of tensorrt_llm_bls that checks for cancellation, with "
        "bls_checks_cancel= of the adapter, or a model with the input `stop`",
        "streaming": "model_transaction_policy { decoupled: true } in config.pbtxt",
        "usage": "a version whose models have return_num_output_tokens",
        "finish_reason": "the LLM API's model (return_finish_reason)",
        "embedding": "embedding=EmbeddingTensors(...) of the adapter",
        "chat": "the engine `openai` on Triton's OpenAI frontend",
        "logprobs": "a model with the input return_log_probs",
        "seed": "a model with the input seed",
    },
    "openai": {
        "usage": "a server that knows stream_options.include_usage",
        "version": "a server with one of /version, /props, /info, /api/version, /server_info",
        "slots": "the server's own engine name instead of `openai`, where there is one",
        "token_ids": "the server's own engine name instead of `openai`, where there is one",
        "model": "model= of the adapter: the server lists several",
    },
}


def hint(engine: str, feature: str) -> str | None:
    """Return what enables a feature that is lacking; None where nothing is known to."""
    return _HINTS.get(engine, {}).get(feature)
