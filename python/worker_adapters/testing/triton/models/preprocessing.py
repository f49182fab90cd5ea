"""Stand-in for ``preprocessing``: text to token ids, one per byte."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from mock_llm import encode  # type: ignore[import-not-found]


class TritonPythonModel:
    """What Triton's python backend loads."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request."""
        return [self._ids(request) for request in requests]

    def _ids(self, request: Any) -> Any:
        query = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy().flatten()[0]
        length = pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy()
        ids = np.array([encode(query.decode())], dtype=np.int32)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("INPUT_ID", ids),
                pb_utils.Tensor("REQUEST_INPUT_LEN", np.array([[ids.shape[1]]], dtype=np.int32)),
                pb_utils.Tensor("REQUEST_OUTPUT_LEN", length.astype(np.int32)),
            ]
        )
