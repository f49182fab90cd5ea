"""Triton Inference Server with TensorRT-LLM's models, by ``generate_stream``.

Both flavours of those models are spoken to: the inflight batcher's (``ensemble``,
``tensorrt_llm_bls``) and the LLM API's (``tensorrt_llm``). Which one it is, what its inputs are
called and whether an event holds new text or all text so far is read from the model's
configuration, because nothing in a stream tells. ``docs/engines/triton.md`` tells the deviations.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final
from urllib.parse import quote

from worker_adapters._core import StreamDecoder
from worker_adapters.capabilities import AdapterCapabilities, Feature
from worker_adapters.contract import (
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerHealth,
    WorkerIdentity,
    WorkerProps,
)
from worker_adapters.engines._call import Call
from worker_adapters.engines._dispatch import Answer, Dispatch, Unsupported
from worker_adapters.engines._http import HttpAdapter
from worker_adapters.engines._triton_errors import ERROR_RULES, RULES
from worker_adapters.engines._triton_model import TritonModel
from worker_adapters.errors import WorkerError
from worker_adapters.extensions import Sampling
from worker_adapters.transport import Headers, Request

__all__ = ["ERROR_RULES", "RULES", "EmbeddingTensors", "TritonAdapter"]

PREFERRED: Final = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")
"""What TensorRT-LLM's repositories call the model to ask, in the order it is looked for."""

TRTLLM_VERSIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "2.51.0": "0.14.0",  # container 24.10
        "2.52.0": "0.15.0",
        "2.53.0": "0.16.0",
        "2.54.0": "0.17.0",  # container 25.01
        "2.56.0": "0.18.0",  # container 25.03
        "2.60.0": "0.21.0",  # container 25.08
        "2.61.0": "1.0.0",
        "2.62.0": "1.0.0",  # container 25.10
    }
)
"""TensorRT-LLM in NVIDIA's container of a Triton version, from its compatibility matrix."""

_GUIDES: Final[Mapping[str, str]] = {
    "json_schema": "json_schema",
    "regex": "regex",
    "grammar": "ebnf_grammar",
}
_OF_THE_SERVER: Final = frozenset(("loading", "draining", "not_ready", "not_found"))
"""Reasons that only a server that lives can give."""


@dataclass(frozen=True, slots=True)
class EmbeddingTensors:
    """Which model turns texts into vectors, and what it calls them; Triton has no convention."""

    input: str
    """A tensor of strings."""
    output: str
    """A tensor of FP32 or FP64, one vector per text."""
    model: str | None = None
    """The model; the adapter's own when unset."""


class TritonAdapter(HttpAdapter):
    """A Triton server with TensorRT-LLM's models.

    Args:
        base_url: As `HttpAdapter` has it, and so are the arguments not named here.
        model: The model to ask. Unset, it is the only one there is, or the first of `PREFERRED`.
        embedding: Makes the workload ``embedding`` possible, by ``/infer``.
        slots: How many requests the model runs at a time. Triton does not tell.
        trtllm_version: The version of TensorRT-LLM. Triton does not tell; NVIDIA's containers are
            known (`TRTLLM_VERSIONS`), images of your own are not.
        bls_checks_cancel: Whether ``tensorrt_llm_bls`` has been changed to look whether the client
            is still there. NVIDIA's does not, so that cancelling frees nothing there.
    """

    engine = "triton"
    dialect = "triton"
    rules = ERROR_RULES
    health_path = "/v2/health/ready"
    # Triton sends nothing but tokens. When a model's process dies it keeps the stream open and the
    # model "ready": silence is all there is to see.
    default_timeouts: ClassVar[Timeouts] = Timeouts(idle=20.0)
    workloads = ("completion", "embedding")
    cancel_kind = "none"
    # Answered the same for an id that is unknown, by the LLM API with an error even if it worked.
    confirms_abort = False
    translates = frozenset(
        (
            *("stop", "sampling", "logprobs", "lora"),
            *("constraint.json_schema", "constraint.regex", "constraint.grammar"),
        )
    )

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        embedding: EmbeddingTensors | None = None,
        slots: int | None = None,
        trtllm_version: str | None = None,
        bls_checks_cancel: bool = False,
        **options: Any,
    ) -> None:
        if slots is not None and slots < 1:
            raise ValueError("slots must be at least 1")
        super().__init__(base_url, model=model, **options)
        self._embedding = embedding
        self._slots = slots
        self._trtllm_version = trtllm_version
        self._bls_checks_cancel = bls_checks_cancel
        self._served: TritonModel | None = None
        self._embedder: TritonModel | None = None
        self._stopper: TritonModel | None = None
        """What a request to stop another goes to, by the id they share."""

    # What the server is.

    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        """Ask whether the model is ready. See `WorkerAdapter.health`.

        ``connect`` may mean that the server starts: it opens no port before every model is loaded.
        """
        found = await super().health(timeouts=timeouts)
        if found.reason in _OF_THE_SERVER and not found.live:
            return WorkerHealth(live=True, ready=False, reason=found.reason)
        return found

    async def _probe_health(self, call: Call) -> None:
        # The server as a whole is "not ready" while any model of it is not; ours may well be.
        name = self._model or await self._found_model(call)
        try:
            await self._get(f"{_path(name)}/ready", call)
        except WorkerError as error:
            if error.detail == "not_ready":
                raise self._error(call, await self._state(name, call), phase="head") from None
            if error.detail == "reset" and error.phase not in {"connect", "tls"}:
                # It accepts connections to the end, and closes them.
                raise self._error(call, "draining", phase="head") from None
            raise

    async def _state(self, name: str, call: Call) -> str:
        """Return why a model is not ready."""
        states = await self._index(call)
        if name not in states:
            return "not_found"
        return "loading" if states[name] == "LOADING" else "not_ready"

    async def _index(self, call: Call) -> dict[str, str]:
        """Return the state of every model of the repository."""
        request = Request("POST", "/v2/repository/index", self._headers(call), b"")
        return self._parsed(await self._exchange(request, call), call, _states)

    async def _found_model(self, call: Call) -> str:
        """Return the model to ask where none was configured."""
        states = await self._index(call)
        names = [name for name, state in states.items() if state == "READY"]
        if not names and "LOADING" in states.values():
            raise self._error(call, "loading", phase="head")
        if len(names) == 1:
            return names[0]
        for name in PREFERRED:
            if name in names:
                return name
        raise self._error(call, "not_found", "the server has several models: configure which")

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Return the configured slots: Triton does not tell. See `WorkerAdapter.props`."""
        del timeouts
        if self._slots is None:
            return WorkerProps()
        return WorkerProps(slots_total=self._slots, source="configuration")

    async def identity(self, *, timeouts: Timeouts | None = None) -> WorkerIdentity:
        """Ask for the version and the model's configuration. See `WorkerAdapter.identity`.

        ``details`` holds ``flavour`` (inflight, llmapi, other), ``text`` (delta, accumulated),
        ``decoupled``, ``stop_model`` (what requests to stop another go to, where there is one), and
        ``trtllm_version`` with its ``trtllm_version_source``: ``configuration``, or ``derived``
        from the version of Triton as NVIDIA's containers have it.
        """
        return await self._refresh_identity(self._call(timeouts))

    async def _known_identity(self, call: Call) -> WorkerIdentity | None:
        # Without the model's configuration nobody knows what a request to it looks like.
        if self._identity is None:
            await self._refresh_identity(call)
            call.progress.phase = "queue"
        return self._identity

    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        version = await self._get_json("/v2", call, lambda server: str(server["version"]))
        model = await self._config(self._model or await self._found_model(call), call)
        generator = None if model.generator is None else await self._config(model.generator, call)
        embedder = model
        if self._embedding is not None and self._embedding.model is not None:
            embedder = await self._config(self._embedding.model, call)
        self._served, self._embedder = model, embedder
        candidate = generator if model.is_ensemble else model
        self._stopper = candidate if candidate is not None and candidate.can_stop_by_id else None
        details: dict[str, bool | int | float | str] = {
            "flavour": model.flavour or "other",
            "text": model.text,
            "decoupled": model.decoupled,
        }
        if self._stopper is not None:
            details["stop_model"] = self._stopper.name
        trtllm = self._trtllm_version or TRTLLM_VERSIONS.get(version)
        if trtllm is not None:
            configured = self._trtllm_version is not None
            details["trtllm_version"] = trtllm
            details["trtllm_version_source"] = "configuration" if configured else "derived"
        return WorkerIdentity(
            engine_version=_version(version, self._trtllm_version),
            model=model.name,
            model_path=(generator or model).engine_path,
            details=details,
        )

    async def _config(self, name: str, call: Call) -> TritonModel:
        return await self._get_json(f"{_path(name)}/config", call, TritonModel.read)

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        model = self._served
        if identity is None or model is None:
            return {}
        facts: dict[str, bool | str] = {
            "streaming": model.decoupled,
            **{
                name: model.input(name) is not None for name in ("seed", "logprobs", "lora", "stop")
            },
            "sampling": any(model.input(name) is not None for name in Sampling.model_fields),
            # Greedy is asked for by this one.
            "determinism": "none" if model.input("top_k") is None else self.determinism,
            **{f"constraint.{kind}": _can_guide(model) for kind in _GUIDES},
            "cancel": self._cancel_kind(model),
            "embeddings": self._embedding is not None,
        }
        return {name: Feature(value=value, source="engine") for name, value in facts.items()}

    def _describe(self, identity: WorkerIdentity | None, props: WorkerProps) -> AdapterCapabilities:
        described = super()._describe(identity, props)
        flavour = None if self._served is None else self._served.flavour
        workloads = [
            *(["completion"] if identity is None or flavour is not None else []),
            *(["embedding"] if self._embedding is not None else []),
        ]
        sources = dict(described.sources)
        if props.slots_total is not None:
            sources["slots_total"] = "configuration"
        return described.model_copy(
            update={"supported_workloads": tuple(workloads), "sources": sources}
        )

    def _cancel_kind(self, model: TritonModel) -> str:
        """Return what frees the engine: an ensemble's step runs on when the client leaves."""
        closing = not model.is_ensemble and (model.flavour == "llmapi" or self._bls_checks_cancel)
        if not model.decoupled:
            return "none"
        if self._stopper is None:
            return "close" if closing else "none"
        return "close+abort" if closing else "abort"

    # A task.

    def _headers(self, call: Call, context: SubmitContext | None = None) -> Headers:
        # A server that is told to end waits for every open connection, idle ones too, until its
        # exit timeout; and over one from before it still answers that it is ready.
        return (*super()._headers(call, context), (b"Connection", b"close"))

    def _decoder(self, dispatch: Dispatch, context: SubmitContext, call: Call) -> StreamDecoder:
        # What is reported is what is sent.
        dispatch = replace(dispatch, seed=_seed(self._served, dispatch))
        return super()._decoder(dispatch, context, call)

    def _dialect_options(self, dispatch: Dispatch) -> Mapping[str, str]:
        model = self._served
        if model is None:
            return {}
        options: dict[str, str] = {"text": model.text}
        if model.flavour is not None and model.input("exclude") is None and dispatch.task.prompt:
            # It cannot be asked to leave the prompt out.
            options["echo"] = dispatch.task.prompt
        if model.flavour == "inflight" and (stop := dispatch.stop()):
            # The executor's output ends in what it stopped at; only the LLM API takes it off.
            options["stop"] = json.dumps(stop)
        return options

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        model = self._target()
        task = dispatch.task
        payload = {
            "id": dispatch.request_id,
            "text_input": task.prompt,
            **_put(model, "max_tokens", task.max_tokens),
            **_sampling(model, dispatch),
        }
        for parameter in ("tokens_in", "tokens_out", "finish_reason", "stop_reason"):
            payload |= _offer(model, parameter, True)
        payload |= _offer(model, "exclude", True)
        # Where a request may have one answer only, asking for more is an error.
        payload |= _offer(model, "stream", model.decoupled)
        if (seed := _seed(model, dispatch)) is not None:
            payload |= _put(model, "seed", seed)
        payload |= _extensions(model, dispatch)
        return f"{_path(model.name)}/generate_stream", payload

    def _target(self) -> TritonModel:
        model = self._served
        if model is None or model.flavour is None:
            raise Unsupported(
                "workload completion", "the model has not the tensors of a language model"
            )
        return model

    def _abort_request(self, dispatch: Dispatch) -> Request | None:
        stopper = self._stopper
        if stopper is None or not dispatch.request_id:
            return None
        body: dict[str, Any] = {"id": dispatch.request_id, "stop": True}
        if "input_ids" in stopper.inputs:
            body |= {"input_ids": [0], "input_lengths": 1, "request_output_len": 0}
        else:
            body["text_input"] = ""
        path = f"{_path(stopper.name)}/generate"
        return Request("POST", path, (), json.dumps(body).encode())

    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        task = dispatch.task
        model, tensors = self._embedder, self._embedding
        if task.workload != "embedding" or tensors is None or model is None:
            raise Unsupported(f"workload {task.workload}")
        if model.inputs.get(tensors.input) != "TYPE_STRING":
            raise Unsupported("workload embedding", f"{model.name} has no such input of strings")
        if model.outputs.get(tensors.output) not in {"TYPE_FP32", "TYPE_FP64"}:
            raise Unsupported("workload embedding", f"{model.name} has no such output of numbers")
        texts = list(task.inputs or ()) or [task.prompt or ""]
        sizes = [1 if size < 0 else size for size in model.shapes[tensors.input]]
        if model.batches:
            shape = [len(texts), *sizes]
        else:
            free = model.shapes[tensors.input][:1] == (-1,)
            shape = [len(texts) if free else sizes[0], *sizes[1:]]
        if math.prod(shape) != len(texts):
            raise Unsupported("inputs", f"{model.name} takes one text at a time")
        tensor = {"name": tensors.input, "datatype": "BYTES", "shape": shape, "data": texts}
        wanted = [{"name": tensors.output}]
        return f"{_path(model.name)}/infer", {"inputs": [tensor], "outputs": wanted}

    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        name = "" if self._embedding is None else self._embedding.output
        [row] = [row for row in answer["outputs"] if row["name"] == name]
        numbers = [_number(value) for value in row["data"]]
        texts = len(task.inputs or ()) or 1
        if len(row["shape"]) > 2 or not numbers or len(numbers) % texts:
            raise ValueError("not one vector per text")
        size = len(numbers) // texts
        vectors = [numbers[at : at + size] for at in range(0, len(numbers), size)]
        return Answer(embeddings=vectors)


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _version(triton: str, trtllm: str | None) -> str:
    return triton if trtllm is None else f"{triton}+trtllm.{trtllm}"


def _states(index: Any) -> dict[str, str]:
    # A model that was never loaded has nothing but its name.
    return {str(row["name"]): str(row.get("state", "UNAVAILABLE")) for row in index}


def _number(value: Any) -> float:
    if type(value) not in {int, float}:
        raise TypeError("not a number")
    return float(value)


def _can_guide(model: TritonModel) -> bool:
    return model.input("guide_type") is not None and model.input("guide") is not None


def _offer(model: TritonModel, parameter: str, value: Any) -> dict[str, Any]:
    """Return the input that takes this parameter; nothing where there is none."""
    name = model.input(parameter)
    if name is None:
        return {}
    if not model.holds(name, value):
        raise Unsupported(parameter, f"{value} does not fit {model.inputs[name]}")
    return {name: value}


def _put(model: TritonModel, parameter: str, value: Any, field: str = "") -> dict[str, Any]:
    """As `_offer`, for what may not be dropped. Raises Unsupported."""
    found = _offer(model, parameter, value)
    if not found:
        raise Unsupported(field or parameter, f"the model {model.name} has no input for it")
    return found


def _seed(model: TritonModel | None, dispatch: Dispatch) -> int | None:
    """Return the seed to send: the task's own as it is, a drawn one within the input's range.

    One that was drawn is of no use to a model that takes none: None, then.
    """
    if model is None or dispatch.seed is None or dispatch.task.seed is not None:
        return dispatch.seed
    name = model.input("seed")
    if name is None:
        return None
    highest = model.highest(name)
    # Ranges end below a power of two: what is left is drawn as evenly.
    return dispatch.seed if highest is None else dispatch.seed % (highest + 1)


def _sampling(model: TritonModel, dispatch: Dispatch) -> dict[str, Any]:
    parameters = dispatch.sampling()
    parameters.pop("stop", None)
    if parameters.get("temperature") == 0:
        # Greedy in the one way that every version takes.
        for name in ("temperature", "top_p", "min_p"):
            parameters.pop(name, None)
        parameters["top_k"] = 1
    payload: dict[str, Any] = {}
    for name, value in parameters.items():
        payload |= _put(model, name, value, f"sampling.{name}")
    if stop := dispatch.stop():
        payload |= _put(model, "stop", stop)
    return payload


def _extensions(model: TritonModel, dispatch: Dispatch) -> dict[str, Any]:
    asked = dispatch.extensions
    payload: dict[str, Any] = {}
    if asked.logprobs is not None:
        if asked.logprobs > 0:
            raise Unsupported("logprobs", "of the chosen token only")
        payload |= _put(model, "logprobs", True)
    if asked.lora is not None:
        if not (asked.lora.isascii() and asked.lora.isdigit()):
            raise Unsupported("lora", "TensorRT-LLM knows LoRA adapters by number")
        payload |= _put(model, "lora", int(asked.lora))
    if (constraint := asked.constraint) is not None:
        field = f"constraint.{constraint.kind}"
        guide = getattr(constraint, constraint.kind)
        if constraint.kind == "json_schema":
            guide = json.dumps(guide, ensure_ascii=False)
        payload |= _put(model, "guide_type", _GUIDES[constraint.kind], field)
        payload |= _put(model, "guide", guide, field)
    return payload
