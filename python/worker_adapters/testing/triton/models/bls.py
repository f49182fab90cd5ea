"""Stand-in for ``tensorrt_llm_bls``: text in, text out, in one python model.

Decoupled, it sends one response per token (or one in all) and then a response that is only the
final flag, as the original does. With accumulate_tokens every response repeats the text so far.
Unlike the original it looks whether a request has been cancelled and runs several at a time.
"""

import json
import threading
import traceback
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from mock_llm import decode, generate, note, parse  # type: ignore[import-not-found]

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def _value(request: Any, name: str, default: Any = None) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().flatten()[0]


def _response(text: str, logprobs: list[float] | None) -> Any:
    tensors = [pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))]
    if logprobs is not None:
        tensors += [
            pb_utils.Tensor("cum_log_probs", np.array([[sum(logprobs)]], dtype=np.float32)),
            pb_utils.Tensor("output_log_probs", np.array([[logprobs]], dtype=np.float32)),
        ]
    return pb_utils.InferenceResponse(tensors)


def _failure(*code: Any) -> Any:
    error = pb_utils.TritonError(traceback.format_exc(), *code)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


class _Plan:
    """What a request asks for."""

    def __init__(self, request: Any) -> None:
        prompt = _value(request, "text_input").decode()
        self.options = parse(prompt)[0]
        self.max_tokens = int(_value(request, "max_tokens"))
        if self.max_tokens <= 0:
            raise ValueError("max_tokens must be a single value > 0")
        self.head = "" if _value(request, "exclude_input_in_output", False) else prompt
        self.logprobs = bool(_value(request, "return_log_probs", False))
        self.streaming = bool(_value(request, "stream", False))


class TritonPythonModel:
    """What Triton's python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model's configuration."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.accumulate = config["parameters"]["accumulate_tokens"]["string_value"] == "true"

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer each request, decoupled on a thread of its own."""
        if not self.decoupled:
            return [self._whole(request) for request in requests]
        for request in requests:
            prompt = _value(request, "text_input").decode()
            if parse(prompt)[0].get("raise"):
                raise RuntimeError("exception escaping execute()")
            sender = request.get_response_sender()
            threading.Thread(target=self._stream, args=(request, sender), daemon=True).start()
        return None

    def _whole(self, request: Any) -> Any:
        try:
            plan = _Plan(request)
            if plan.options.get("raise"):
                raise RuntimeError("exception escaping execute()")  # noqa: TRY301
            reply = generate(plan.options, plan.max_tokens, request.is_cancelled)
            ids = [token for token, _ in reply]
        except Exception:  # noqa: BLE001 - the client is told
            return _failure()
        logprobs = [-0.125 * (i + 1) for i in range(len(ids))]
        return _response(plan.head + decode(ids), logprobs if plan.logprobs else None)

    def _stream(self, request: Any, sender: Any) -> None:
        request_id, code, ids = request.request_id(), "INTERNAL", list[int]()
        note(model=self.name, event="start", id=request_id)
        try:
            plan = _Plan(request)
            code = plan.options.get("error_code", code)
            self._generate(plan, request_id, sender, ids)
        except Exception:  # noqa: BLE001 - the client is told
            note(model=self.name, event="error", id=request_id, sent=len(ids))
            sender.send(_failure(getattr(pb_utils.TritonError, code)))
        sender.send(flags=FINAL)

    def _generate(self, plan: _Plan, request_id: str, sender: Any, ids: list[int]) -> None:
        done = False
        for token, finish in generate(plan.options, plan.max_tokens, sender.is_cancelled):
            ids.append(token)
            done = finish is not None
            if plan.streaming:
                if plan.options.get("empty") and len(ids) == 3:
                    sender.send(_response("", None))
                text = decode(ids) if self.accumulate else decode([token])
                sender.send(_response(text, [-0.125 * len(ids)] if plan.logprobs else None))
        if done and not plan.streaming:
            logprobs = [-0.125 * (i + 1) for i in range(len(ids))]
            sender.send(_response(plan.head + decode(ids), logprobs if plan.logprobs else None))
        event = "done" if done else "cancelled"
        note(model=self.name, event=event, id=request_id, sent=len(ids))
