"""The contract's JSON: every row of the vectors, which the Rust types are held to as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from worker_adapters import (
    CancelReceipt,
    Extensions,
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerHealth,
    WorkerProps,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "contract.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in VECTORS.read_text().splitlines()]
MODELS = {
    model.__name__: model
    for model in (
        TaskRequest,
        SubmitContext,
        WorkerHealth,
        WorkerProps,
        CancelReceipt,
        Timeouts,
    )
}


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_both_languages_write_read_and_refuse_the_same(row: dict[str, Any]) -> None:
    model = MODELS[row["model"]]
    allowed = Extensions(**row.get("allow", {}))
    if "written" in row:
        read = model.model_validate_json(row["json"], context=allowed)
        assert read.model_dump_json() == row["written"]
        return
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(row["json"], context=allowed)
    # A rule about several fields is the whole model's.
    location = [str(part) for part in caught.value.errors()[0]["loc"]]
    assert row["refused"].split(".")[: len(location)] == location[: row["refused"].count(".") + 1]
