"""vLLM from 0.8 on, behind its Python front end or its Rust one (vllm-rs).

Its routes are OpenAI's, so most is in `OpenAiAdapter`; here is what vLLM has beyond them, and since
which version: constraints, token ids, request ids of our own and a route to abort by them, metrics.
``docs/engines/vllm.md`` tells what the server does on the wire and where this was seen.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Final
from uuid import uuid4

from worker_adapters.capabilities import Feature
from worker_adapters.contract import SubmitContext, Timeouts, WorkerIdentity, WorkerProps
from worker_adapters.engines._call import Call
from worker_adapters.engines._dispatch import Dispatch, Unsupported
from worker_adapters.engines._load import EngineLoad
from worker_adapters.engines.openai import (
    ERROR_RULES,
    REPETITION,
    RULES,
    OpenAiAdapter,
    Sampler,
    _is_missing,
    _listing,
)
from worker_adapters.errors import AdapterError, WorkerError, WorkerReset
from worker_adapters.stream import TokenStream
from worker_adapters.transport import Headers, Request

__all__ = ["ERROR_RULES", "RULES", "EngineLoad", "VllmAdapter"]

Version = tuple[int, ...]

# Where a field came; see the version map in the docs.
CONSTRAINTS_BY_GUIDED: Final[Version] = (0, 11)
"""Before it constraints are ``guided_*`` fields, from it on ``structured_outputs``."""
SAFE_GRAMMARS: Final[Version] = (0, 9)
"""Before it a malformed regex or grammar ends the whole engine (V0), not the request."""
TOKEN_IDS: Final[Version] = (0, 10, 2)
RANK_HEADER: Final[Version] = (0, 11, 1)
CACHE_SALT: Final[Version] = (0, 9)
ABORT_ROUTE: Final[Version] = (0, 11, 1)
NEWEST: Final[Version] = (1_000_000,)
"""Stands for a build that says that it is of no release."""

ABORT_PATH: Final = "/inference/v1/abort_requests"
RUST_FRONT_END: Final = "vllm-frontend-rs"
UNKNOWN: Final = "unknown"
"""The version of a server that does not tell it."""


class VllmAdapter(OpenAiAdapter):
    """A vLLM server. Arguments as `OpenAiAdapter` has them, except ``probe``.

    Closing the connection is what frees the engine, within about 0.1 s; where the server was
    started with ``--enable-scale-out`` the request is aborted by its id, too.
    """

    engine = "vllm"
    max_seed = 2**63 - 1
    keeps_after_stream = True
    health_routes = ("/health",)
    translates: ClassVar[frozenset[str]] = OpenAiAdapter.translates | {
        "constraint.regex",
        "constraint.grammar",
        "constraint.choice",
        "token_ids",
        "lora",
        "priority",
        "data_parallel_rank",
    }

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(base_url, probe="route", **options)
        # What does not change while a server lives: asked for once, not with every identity.
        self._asked_of = UNKNOWN
        self._aborts_by_id: bool | None = None
        self._seats: int | None = None
        self._asked_for_seats = False
        self._ranks_by_score = False

    # What the server is.

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask for the places: ``/server_info`` where it is served, with ``/metrics``.

        See `WorkerAdapter.props`. Only a server in development mode tells how many requests it
        runs at once (``--max-num-seqs``).
        """
        call = self._call(timeouts)
        load = await self._load(call)
        if not self._asked_for_seats:
            self._seats = await self._max_num_seqs(call)
            self._asked_for_seats = True
        if self._seats is None or load.running is None or load.engines is None:
            return WorkerProps()
        total = self._seats * load.engines
        return WorkerProps(
            slots_total=total,
            slots_free=max(0, total - load.running),
            source="server_info+metrics",
        )

    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        version = await self._told_version(call)
        listing = await self._get_json(f"{self._prefix}/models", call, _listing)
        # Names of LoRA adapters are listed beside the model they belong to.
        own = [row for row in listing if row.get("parent") is None]
        if version != self._asked_of:
            # Another build than the one that was asked: what it can do is asked again.
            self._asked_of, self._aborts_by_id, self._asked_for_seats = version, None, False
        if self._aborts_by_id is None:
            could = _is_since(_parsed(version), ABORT_ROUTE)
            self._aborts_by_id = await self._has_abort_route(call) if could else False
        return self._described(
            version,
            own,
            front_end="rust" if _is_rust(own) else "python",
            aborts=self._aborts_by_id is True,
            loras=len(listing) - len(own),
        )

    async def _told_version(self, call: Call) -> str:
        """Ask for the version; ``unknown`` where the server answers and does not tell.

        Raises WorkerError.
        """
        try:
            version = await self._get_json("/version", call, itemgetter("version"))
        except AdapterError:
            return UNKNOWN
        except WorkerError as error:
            if error.detail != "bad_json":
                raise
            return UNKNOWN
        return version if isinstance(version, str) and version else UNKNOWN

    def _forget_identity(self, error: WorkerError) -> None:
        super()._forget_identity(error)
        if self._identity is None:
            self._aborts_by_id, self._seats, self._asked_for_seats = None, None, False
            self._ranks_by_score = False

    def _chosen(self, listing: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        # Several names of one model: any of them does, the first is the one in the metrics.
        return super()._chosen(listing) or (listing[0] if listing and self._model is None else {})

    async def _has_abort_route(self, call: Call) -> bool | None:
        """Ask for the abort of a request that there cannot be; None where no answer comes."""
        body = b'{"request_ids":["cmpl-probe-%s-0"]}' % uuid4().hex.encode()
        try:
            await self._exchange(Request("POST", ABORT_PATH, self._headers(call), body), call)
        except AdapterError:
            return False
        except WorkerError:
            return None
        return True

    async def _max_num_seqs(self, call: Call) -> int | None:
        """Ask how many requests an engine runs at once; only a server in development mode tells."""
        try:
            return await self._get_json("/server_info?config_format=json", call, _max_num_seqs)
        except (AdapterError, WorkerReset):
            return None

    def _is_untold(self, feature: str, identity: WorkerIdentity | None) -> bool:
        del identity
        # It takes --scheduling-policy priority, and no route tells.
        return feature == "priority"

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        features = {**super()._features(identity), "metrics": Feature(value=True, source="adapter")}
        version = None if identity is None else _parsed(identity.engine_version)
        is_rust = identity is not None and identity.details.get("front_end") == "rust"
        by_version = {
            "constraint.json_schema": version is not None,
            "constraint.choice": version is not None,
            "constraint.regex": _is_since(version, SAFE_GRAMMARS),
            "constraint.grammar": _is_since(version, SAFE_GRAMMARS),
            "token_ids": _is_since(version, TOKEN_IDS),
            "data_parallel_rank": _is_since(version, RANK_HEADER) and not is_rust,
        }
        for name, has in by_version.items():
            features[name] = Feature(value=has, source="adapter")
        if identity is None:
            features["lora"] = Feature(value=False, source="adapter")
            return features
        features["lora"] = Feature(value=bool(identity.details.get("loras")), source="engine")
        kind = "close+abort" if identity.details.get("aborts") else "close"
        features["cancel"] = Feature(value=kind, source="engine")
        return features

    # What it is sent.

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        path, asked = super()._completion(dispatch)
        extensions, version = dispatch.extensions, _version_of(dispatch)
        payload = dict(asked)
        if extensions.lora is not None:
            if dispatch.identity is None or not dispatch.identity.details.get("loras"):
                raise Unsupported("lora", "the server lists no adapter")
            payload["model"] = extensions.lora
        if extensions.token_ids:
            if not _is_since(version, TOKEN_IDS):
                raise Unsupported("token_ids", _why(version))
            payload["return_token_ids"] = True
        if extensions.priority is not None:
            # vLLM takes the lowest first, and refuses any but 0 unless it schedules by priority.
            payload["priority"] = -extensions.priority
        is_cold = dispatch.task.kv_hint == "cold" or dispatch.task.determinism == "strict"
        if is_cold and _is_since(version, CACHE_SALT):
            # Nothing that another request has cached is found under a salt of our own.
            payload["cache_salt"] = dispatch.request_id
        return path, payload

    async def _unary_stream(
        self, dispatch: Dispatch, context: SubmitContext, call: Call
    ) -> TokenStream:
        by_score = self._ranks_by_score  # others may learn better meanwhile
        try:
            return await super()._unary_stream(dispatch, context, call)
        except AdapterError as error:
            if by_score or dispatch.task.workload != "rerank" or not _refuses_rerank(error):
                raise
            refusal = error
        self._ranks_by_score = True
        try:
            return await super()._unary_stream(dispatch, context, call)
        except AdapterError as error:
            self._ranks_by_score = False
            raise (refusal if _is_missing(error) else error) from None

    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        task = dispatch.task
        if task.workload != "rerank" or not self._ranks_by_score:
            return super()._unary_request(dispatch)
        texts = {"text_1": task.prompt, "text_2": list(task.inputs or ())}
        return f"{self._prefix}/score", {"model": self._model_name(dispatch), **texts}

    def _sampler(self, dispatch: Dispatch) -> Sampler:
        del dispatch
        # 0 is refused by 0.8, and -1 is understood by all.
        return Sampler(REPETITION, every_token=-1)

    def _constraint(self, dispatch: Dispatch) -> dict[str, Any]:
        constraint, version = dispatch.extensions.constraint, _version_of(dispatch)
        if constraint is None:
            return {}
        if version is None:
            raise Unsupported(f"constraint.{constraint.kind}", _why(version))
        if constraint.kind in {"regex", "grammar"} and version < SAFE_GRAMMARS:
            raise Unsupported(f"constraint.{constraint.kind}", "a malformed one ends this engine")
        name = "json" if constraint.kind == "json_schema" else constraint.kind
        value = getattr(constraint, constraint.kind)
        value = list(value) if constraint.kind == "choice" else value
        if version < CONSTRAINTS_BY_GUIDED:
            return {f"guided_{name}": value}
        return {"structured_outputs": {name: value}}

    def _alternatives(self, wanted: int) -> int:
        return wanted

    def _submit_headers(self, dispatch: Dispatch) -> Headers:
        headers = [
            *super()._submit_headers(dispatch),
            (b"X-Request-Id", _ascii(dispatch.request_id)),
        ]
        rank = dispatch.extensions.data_parallel_rank
        if rank is not None:
            version = _version_of(dispatch)
            if not _is_since(version, RANK_HEADER) or _is_behind_rust(dispatch):
                raise Unsupported("data_parallel_rank", _why(version))
            headers.append((b"X-data-parallel-rank", _ascii(str(rank))))
        return headers

    def _abort_request(self, dispatch: Dispatch) -> Request | None:
        identity = dispatch.identity
        if identity is None or not identity.details.get("aborts"):
            return None
        if not dispatch.request_id:
            return None
        if dispatch.extensions.messages is None:
            # Each prompt of a completion is a request of its own.
            own = f"cmpl-{dispatch.request_id}-0"
        else:
            own = f"chatcmpl-{dispatch.request_id}"
        return Request("POST", ABORT_PATH, body=b'{"request_ids":["%s"]}' % _ascii(own))


def _parsed(version: str) -> Version | None:
    """Return the release a version belongs to; None for one that is not known.

    A build from source says that it is of no release, and counts as the newest.
    """
    if re.match(r"dev\b|0\.[01]\.(dev|0\b)", version):
        return NEWEST
    release = re.match(r"\d+(?:\.\d+)*", version)
    return None if release is None else tuple(int(number) for number in release[0].split("."))


def _is_since(version: Version | None, since: Version) -> bool:
    """Whether a version has what came then; one that is not known has nothing for certain."""
    return version is not None and version >= since


def _refuses_rerank(error: AdapterError) -> bool:
    """Whether the server has no reranking; it may have scoring."""
    return _is_missing(error) or "does not support Rerank" in error.message


def _why(version: Version | None) -> str:
    return "the server does not tell its version" if version is None else ""


def _version_of(dispatch: Dispatch) -> Version | None:
    identity = dispatch.identity
    return None if identity is None else _parsed(identity.engine_version)


def _is_rust(listing: Iterable[Mapping[str, Any]]) -> bool:
    return any(row.get("owned_by") == RUST_FRONT_END for row in listing)


def _is_behind_rust(dispatch: Dispatch) -> bool:
    identity = dispatch.identity
    return identity is not None and identity.details.get("front_end") == "rust"


def _max_num_seqs(answer: Any) -> int | None:
    config = answer["vllm_config"]
    if isinstance(config, str):  # a server of before the JSON form
        return None
    seats = config["scheduler_config"]["max_num_seqs"]
    return seats if type(seats) is int and seats > 0 else None


def _ascii(text: str) -> bytes:
    return text.encode("ascii")
