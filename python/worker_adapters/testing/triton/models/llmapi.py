"""Stand-in for the LLM API flavour of ``tensorrt_llm``: text in, text out, in one python model.

As in the original, streamed responses carry the whole text so far and the last one the final flag;
extra outputs are strings; a cancelled request ends with an error, and so does a successful request
to stop one; a failure carries both an error and the text "N/A".
"""

import json
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from mock_llm import decode, generate, note, parse  # type: ignore[import-not-found]

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def _value(request: Any, name: str, default: Any = None) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().flatten()[0]


def _string(name: str, value: object) -> Any:
    return pb_utils.Tensor(name, np.array([str(value).encode()], dtype=np.object_))


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(
        [_string("text_output", "N/A")],
        error=pb_utils.TritonError(f"Error generating request: {error}"),
    )


def _cancelled(text: str = "Request cancelled by client") -> Any:
    error = pb_utils.TritonError(text, pb_utils.TritonError.CANCELLED)
    return pb_utils.InferenceResponse(error=error)


def _response(request: Any, text: str, tokens: int, finish: str | None) -> Any:
    tensors = [_string("text_output", text)]
    extras = {
        "finish_reason": finish,
        "stop_reason": None,
        "cumulative_logprob": -0.125 * tokens,
    }
    for name, value in extras.items():
        if _value(request, f"return_{name}", False):
            tensors.append(_string(name, value))
    if finish and _value(request, "sampling_param_return_perf_metrics", False):
        tensors += [
            _string("kv_cache_reused_block", 0),
            _string("kv_cache_hit_rate", 0.0),
            _string("arrival_time_ns", 76735247746000),
        ]
    return pb_utils.InferenceResponse(tensors)


class _Plan:
    """What a request asks for."""

    def __init__(self, request: Any) -> None:
        prompt = _value(request, "text_input").decode()
        excluded = _value(request, "sampling_param_exclude_input_from_output", False)
        self.options = parse(prompt)[0]
        self.head = "" if excluded else prompt
        self.max_tokens = int(_value(request, "sampling_param_max_tokens", 32))
        self.streaming = bool(_value(request, "streaming", False))


class TritonPythonModel:
    """What Triton's python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model's configuration."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.running: dict[str, threading.Event] = {}

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer each request, decoupled on a thread of its own."""
        if not self.decoupled:
            return [self._whole(request) for request in requests]
        for request in requests:
            sender = request.get_response_sender()
            if _value(request, "stop", False):
                self._stop(request.request_id(), sender)
            else:
                threading.Thread(target=self._run, args=(request, sender), daemon=True).start()
        return None

    def _stop(self, request_id: str, sender: Any) -> None:
        note(model=self.name, event="stop", id=request_id, known=request_id in self.running)
        if request_id in self.running:
            self.running[request_id].set()
        no_id = "A request id must be provided for request cancellation"
        sender.send(_cancelled() if request_id else _cancelled(no_id), flags=FINAL)

    def _whole(self, request: Any) -> Any:
        try:
            plan = _Plan(request)
            if plan.streaming:
                raise ValueError("Streaming is only supported in decoupled mode.")  # noqa: TRY301
            reply = generate(plan.options, plan.max_tokens, request.is_cancelled)
            ids = [token for token, _ in reply]
        except Exception as error:  # noqa: BLE001 - the client is told
            return _failure(error)
        finish = "length" if len(ids) == plan.max_tokens else "stop"
        return _response(request, plan.head + decode(ids), len(ids), finish)

    def _run(self, request: Any, sender: Any) -> None:
        request_id, stopped, ids = request.request_id(), threading.Event(), list[int]()
        if request_id:
            self.running[request_id] = stopped
        note(model=self.name, event="start", id=request_id)
        finish = None
        try:
            plan = _Plan(request)
            for token, finish in generate(
                plan.options, plan.max_tokens, lambda: stopped.is_set() or sender.is_cancelled()
            ):
                ids.append(token)
                if plan.streaming:
                    text = plan.head + decode(ids)
                    answer = _response(request, text, len(ids), finish)
                    sender.send(answer, flags=FINAL if finish else 0)
            event = "done" if finish else "stopped" if stopped.is_set() else "cancelled"
            note(model=self.name, event=event, id=request_id, sent=len(ids))
            if finish is None:
                sender.send(_cancelled(), flags=FINAL)
            elif not plan.streaming:
                text = plan.head + decode(ids)
                sender.send(_response(request, text, len(ids), finish), flags=FINAL)
        except Exception as error:  # noqa: BLE001 - the client is told
            note(model=self.name, event="error", id=request_id, sent=len(ids))
            sender.send(_failure(error), flags=FINAL)
        finally:
            self.running.pop(request_id, None)
