"""Serve a GGUF over HTTP with the real llama.cpp server bundled in the xllamacpp wheel.

A program of its own, run as a child process by `LlamaCppServer` and usable by hand:

    python -m worker_adapters.testing.llamacpp.server -m tiny.gguf --port 8080 -np 4 --metrics

It takes llama-server's names for the flags it knows, so commands carry over to that binary.
The socket is up, and answers 503, while the model loads; once it is loaded the one line
``listening http://127.0.0.1:PORT`` appears on stdout. The engine's log goes to stderr.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The flags, named as llama-server names them."""
    flags = argparse.ArgumentParser(
        description="A real llama.cpp HTTP server on loopback.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = flags.add_argument
    add("-m", "--model", required=True, help="path of the GGUF file")
    add("-a", "--alias", help="name that /v1/models reports")
    add("--port", type=int, default=0, help="0: a free port")
    add("-c", "--ctx-size", type=int, default=2048, help="tokens, all slots together")
    add("-np", "--parallel", type=int, default=4, help="slots")
    add("-b", "--batch-size", type=int, default=2048)
    add("-ub", "--ubatch-size", type=int, default=512)
    add("-t", "--threads", type=int, default=1)
    add("--threads-http", type=int, default=-1, help="-1: the engine's choice")
    add("--seed", type=int, default=1)
    add("--metrics", action="store_true")
    add("--props", action="store_true", help="allow POST /props")
    add("--no-slots", action="store_true", help="switch /slots off")
    add("--slot-save-path", default="")
    add(
        "--api-key",
        default=os.environ.get("LLAMA_API_KEY", ""),
        help="keys, comma-separated; better given as LLAMA_API_KEY, which ps does not show",
    )
    add("--sse-ping-interval", type=int, default=30, help="seconds; -1: no pings")
    add("--embeddings", action="store_true")
    add("--pooling", choices=["none", "mean", "cls", "last", "rank"])
    add("--kv-unified", action="store_true")
    add("--context-shift", action="store_true")
    add("--sleep-idle-seconds", type=int, default=-1)
    add("--no-warmup", action="store_true")
    add("--exit-with-stdin", action="store_true", help="end when stdin is closed")
    return flags


def engine_params(options: argparse.Namespace, engine: Any) -> Any:
    """The engine's parameter object for the parsed flags."""
    params = engine.CommonParams()
    params.model.path = options.model
    if options.alias:
        params.model_alias = {options.alias}
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_ctx, params.n_parallel = options.ctx_size, options.parallel
    params.n_batch, params.n_ubatch = options.batch_size, options.ubatch_size
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.n_threads_http = options.threads_http
    params.sampling.seed = options.seed
    params.endpoint_metrics, params.endpoint_props = options.metrics, options.props
    params.endpoint_slots = not options.no_slots
    save_path = options.slot_save_path
    params.slot_save_path = f"{save_path.rstrip('/')}/" if save_path else ""
    params.api_keys = [key for key in options.api_key.split(",") if key]
    params.sse_ping_interval = options.sse_ping_interval
    params.kv_unified, params.ctx_shift = options.kv_unified, options.context_shift
    params.sleep_idle_seconds = options.sleep_idle_seconds
    params.warmup = not options.no_warmup
    params.fit_params = False
    params.embedding = options.embeddings or options.pooling == "rank"
    if options.pooling:
        name = "LLAMA_POOLING_TYPE_" + options.pooling.upper()
        params.pooling_type = getattr(engine.llama_pooling_type, name)
    return params


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the server and stay until SIGTERM, SIGINT or (when asked) the end of stdin."""
    options = parser().parse_args(arguments)
    # Freeing the engine's server object waits for open streams, so every signal skips that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    if options.exit_with_stdin:
        threading.Thread(target=_exit_with_stdin, daemon=True).start()
    engine: Any = importlib.import_module("xllamacpp")
    try:
        server = engine.Server(engine_params(options, engine))
    except RuntimeError as error:
        # There is no server object to wait for, but a thread that writes the engine's log: cut
        # short, it would take with it why the model could not be loaded.
        _write_out_log(engine)
        sys.exit(f"{error}")
    print("listening", server.listening_address, flush=True)
    threading.Event().wait()


def _write_out_log(engine: Any) -> None:
    """Have the engine's logging thread write all it has, and end."""
    library = ctypes.CDLL(engine.xllamacpp.__file__)
    log = getattr(library, "_Z15common_log_mainv", None)
    pause = getattr(library, "_Z16common_log_pauseP10common_log", None)
    if log is not None and pause is not None:
        log.restype = ctypes.c_void_p
        pause.argtypes = [ctypes.c_void_p]
        pause(log())


def _exit_with_stdin() -> None:
    """Leave once the process that holds the other end of stdin has gone, however it went."""
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
