"""Stand-in for the inflight batcher's ``tensorrt_llm``: token ids in, token ids out.

Streaming, every response holds one new token; otherwise one response holds the prompt's ids
(unless they are excluded) and the reply's. The last response carries the final flag, as the C++
backend's does, and so does an error. A request with ``stop`` cancels the running one of the same id
and is answered with an empty response; the stopped one ends with an empty last response.
"""

import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from mock_llm import (  # type: ignore[import-not-found]
    EngineError,
    decode,
    generate,
    note,
    parse,
)

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def _value(request: Any, name: str, default: Any = None) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().flatten()[0]


def _response(ids: list[int], logprobs: list[float] | None) -> Any:
    tensors = [
        pb_utils.Tensor("output_ids", np.array([[ids]], dtype=np.int32)),
        pb_utils.Tensor("sequence_length", np.array([[len(ids)]], dtype=np.int32)),
    ]
    if logprobs is not None:
        tensors += [
            pb_utils.Tensor("cum_log_probs", np.array([[sum(logprobs)]], dtype=np.float32)),
            pb_utils.Tensor("output_log_probs", np.array([[logprobs]], dtype=np.float32)),
        ]
    return pb_utils.InferenceResponse(tensors)


def _error(text: str, *code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, *code))


class TritonPythonModel:
    """What Triton's python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 - Triton's signature
        """Begin with no request running."""
        self.stops: dict[str, threading.Event] = {}

    def execute(self, requests: list[Any]) -> None:
        """Answer each request on a thread of its own."""
        for request in requests:
            sender = request.get_response_sender()
            if _value(request, "stop", False):
                self._stop(request.request_id(), sender)
            else:
                threading.Thread(target=self._run, args=(request, sender), daemon=True).start()

    def _stop(self, request_id: str, sender: Any) -> None:
        note(model="tensorrt_llm", event="stop", id=request_id, known=request_id in self.stops)
        if request_id in self.stops:
            self.stops[request_id].set()
        refusal = _error("Trying to stop a request but request ID is not provided")
        sender.send(pb_utils.InferenceResponse([]) if request_id else refusal, flags=FINAL)

    def _run(self, request: Any, sender: Any) -> None:
        ids = pb_utils.get_input_tensor_by_name(request, "input_ids").as_numpy().flatten()
        prompt = [int(i) for i in ids]
        options, _ = parse(decode(prompt))
        streaming = bool(_value(request, "streaming", False))
        want = bool(_value(request, "return_log_probs", False))
        max_tokens = int(_value(request, "request_output_len"))
        excluded = streaming or _value(request, "exclude_input_in_output", False)
        held = [] if excluded else prompt
        request_id = request.request_id()
        stopped = threading.Event()
        if request_id:
            self.stops[request_id] = stopped
        note(model="tensorrt_llm", event="start", id=request_id)
        logprobs: list[float] = []
        done = False
        try:
            for token, finish in generate(
                options, max_tokens, lambda: stopped.is_set() or sender.is_cancelled()
            ):
                done = finish is not None
                logprobs.append(-0.125 * (len(logprobs) + 1))
                if streaming:
                    answer = _response([token], logprobs[-1:] if want else None)
                    sender.send(answer, flags=FINAL if done else 0)
                else:
                    held = [*held, token]
            event = "done" if done else "stopped" if stopped.is_set() else "cancelled"
            note(model="tensorrt_llm", event=event, id=request_id, sent=len(logprobs))
            if event == "cancelled":
                cancelled = _error("request cancelled", pb_utils.TritonError.CANCELLED)
                sender.send(cancelled, flags=FINAL)
            elif not (done and streaming):
                answer = _response([] if streaming else held, logprobs if want and done else None)
                sender.send(answer, flags=FINAL)
        except EngineError as error:
            note(model="tensorrt_llm", event="error", id=request_id, sent=len(logprobs))
            text = "Executor failed process requestId 1 due to the following error: "
            sender.send(_error(f"{text}{error}"), flags=FINAL)
        finally:
            self.stops.pop(request_id, None)
