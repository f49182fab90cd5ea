"""Adapters between an LLM orchestrator and its inference engines: one contract for every engine.

    from worker_adapters import LlamaCppAdapter, TaskRequest

    async with LlamaCppAdapter("http://127.0.0.1:8080") as adapter:
        stream = await adapter.submit(TaskRequest(...))
        async for event in stream:
            if event.kind == "token":
                print(event.t, end="", flush=True)

Importing this package loads next to nothing: each name is looked up when it is first used, and only
an adapter loads an HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from worker_adapters._core import (
        EgressPolicy,
        EgressVerdict,
        ErrorRules,
        Metrics,
        Redactor,
        SseDecoder,
        SseEvent,
        StreamDecoder,
        TokenEvent,
        __version__,
    )
    from worker_adapters.adapter import WorkerAdapter
    from worker_adapters.capabilities import AdapterCapabilities
    from worker_adapters.contract import (
        CancelReceipt,
        Collected,
        ExpectedModel,
        Placement,
        RerankScore,
        SamplerProfile,
        SubmitContext,
        TaskRequest,
        Timeouts,
        WorkerHealth,
        WorkerIdentity,
        WorkerProps,
    )
    from worker_adapters.engines.llamacpp import LlamaCppAdapter
    from worker_adapters.engines.openai import OpenAiAdapter
    from worker_adapters.engines.sglang import SglangAdapter
    from worker_adapters.engines.tgi import TgiAdapter
    from worker_adapters.engines.triton import TritonAdapter
    from worker_adapters.engines.vllm import VllmAdapter
    from worker_adapters.errors import (
        AdapterError,
        DeadlineUnmet,
        DecodeTimeout,
        InternalError,
        PoolUnavailable,
        WorkerError,
        WorkerReset,
    )
    from worker_adapters.extensions import (
        ChatMessage,
        Constraint,
        Extensions,
        ImagePart,
        Sampling,
        TaskExtensions,
        TextPart,
        Tool,
        ToolCall,
    )
    from worker_adapters.host.host import AdapterHost
    from worker_adapters.host.policy import PoolPolicy
    from worker_adapters.observe.formatter import JsonFormatter, JsonHandler
    from worker_adapters.observe.logs import Logs
    from worker_adapters.observe.text import TextPolicy
    from worker_adapters.retry import RetryPolicy
    from worker_adapters.stream import TokenStream
    from worker_adapters.tls import TlsOptions

__all__ = [
    "AdapterCapabilities",
    "AdapterError",
    "AdapterHost",
    "CancelReceipt",
    "ChatMessage",
    "Collected",
    "Constraint",
    "DeadlineUnmet",
    "DecodeTimeout",
    "EgressPolicy",
    "EgressVerdict",
    "ErrorRules",
    "ExpectedModel",
    "Extensions",
    "ImagePart",
    "InternalError",
    "JsonFormatter",
    "JsonHandler",
    "LlamaCppAdapter",
    "Logs",
    "Metrics",
    "OpenAiAdapter",
    "Placement",
    "PoolPolicy",
    "PoolUnavailable",
    "Redactor",
    "RerankScore",
    "RetryPolicy",
    "SamplerProfile",
    "Sampling",
    "SglangAdapter",
    "SseDecoder",
    "SseEvent",
    "StreamDecoder",
    "SubmitContext",
    "TaskExtensions",
    "TaskRequest",
    "TextPart",
    "TextPolicy",
    "TgiAdapter",
    "Timeouts",
    "TlsOptions",
    "TokenEvent",
    "TokenStream",
    "Tool",
    "ToolCall",
    "TritonAdapter",
    "VllmAdapter",
    "WorkerAdapter",
    "WorkerError",
    "WorkerHealth",
    "WorkerIdentity",
    "WorkerProps",
    "WorkerReset",
    "__version__",
]

_HOMES: Final = {
    "_core": (
        "EgressPolicy",
        "EgressVerdict",
        "ErrorRules",
        "Metrics",
        "Redactor",
        "SseDecoder",
        "SseEvent",
        "StreamDecoder",
        "TokenEvent",
        "__version__",
    ),
    "adapter": ("WorkerAdapter",),
    "capabilities": ("AdapterCapabilities",),
    "contract": (
        "CancelReceipt",
        "Collected",
        "ExpectedModel",
        "Placement",
        "RerankScore",
        "SamplerProfile",
        "SubmitContext",
        "TaskRequest",
        "Timeouts",
        "WorkerHealth",
        "WorkerIdentity",
        "WorkerProps",
    ),
    "errors": (
        "AdapterError",
        "DeadlineUnmet",
        "DecodeTimeout",
        "InternalError",
        "PoolUnavailable",
        "WorkerError",
        "WorkerReset",
    ),
    "extensions": (
        "ChatMessage",
        "Constraint",
        "Extensions",
        "ImagePart",
        "Sampling",
        "TaskExtensions",
        "TextPart",
        "Tool",
        "ToolCall",
    ),
    "observe.formatter": ("JsonFormatter", "JsonHandler"),
    "observe.logs": ("Logs",),
    "observe.text": ("TextPolicy",),
    "host": ("AdapterHost", "PoolPolicy"),
    "retry": ("RetryPolicy",),
    "stream": ("TokenStream",),
    "tls": ("TlsOptions",),
}
"""Which module each name lives in; adapters live in that of their engine."""

_MODULE_OF: Final = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'engines')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
