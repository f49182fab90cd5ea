"""Stand-in for ``postprocessing``: token ids to text, each call standing alone."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from mock_llm import decode  # type: ignore[import-not-found]


class TritonPythonModel:
    """What Triton's python backend loads."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request."""
        return [self._text(request) for request in requests]

    def _text(self, request: Any) -> Any:
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        texts = [
            decode(beam[:length]).encode()
            for batch, counts in zip(tokens, lengths, strict=True)
            for beam, length in zip(batch, counts, strict=True)
        ]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUTPUT", np.array(texts, dtype=np.object_))]
        )
