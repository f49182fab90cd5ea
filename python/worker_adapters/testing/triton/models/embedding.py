"""Stand-in for an embedding model: one vector of four numbers per text, not a language model's.

The numbers are the text's length in characters, its UTF-8 length, the number of its words, and 0.5,
so that a test can tell whose vector it got.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


def _vector(text: str) -> list[float]:
    return [len(text), len(text.encode()), len(text.split()), 0.5]


class TritonPythonModel:
    """What Triton's python backend loads."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request."""
        return [self._vectors(request) for request in requests]

    def _vectors(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().flatten()
        vectors = np.array([_vector(text.decode()) for text in texts], dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", vectors)])
