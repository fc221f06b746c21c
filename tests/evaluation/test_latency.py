from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sam3slim.data.batch import Batch
from sam3slim.evaluation.latency import measure_latency, peak_memory_bytes, reset_peak_memory
from sam3slim.models import Sam3


def test_measure_latency__counts_only_the_repeats(
    model: Sam3, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([[1, 2], [3]])
    one = [0, 10, 10.002, 20, 20.004]  # the warm-up is started and not stopped
    clock = iter([*one, *(second / 2 for _ in range(3) for second in one)])
    monkeypatch.setattr("sam3slim.evaluation.latency.time.perf_counter", lambda: next(clock))
    result = measure_latency(
        model, batch.pixel_values, batch.input_ids, batch.attention_mask,
        image_index=batch.image_index, warmup=1, repeats=2,
    )  # fmt: skip
    assert result["p50"] == pytest.approx(3.0)
    assert result["p90"] == pytest.approx(3.8)
    assert (result["batch"], result["prompts"], result["threads"]) == (2, 3, torch.get_num_threads())
    assert list(result["parts"]) == ["vision", "text", "prompts"]
    assert result["parts"]["text"]["p50"] == pytest.approx(1.5)


def test_measure_latency__no_repeats_is_refused(model: Sam3, make_batch: Callable[..., Batch]) -> None:
    batch = make_batch([[1]])
    with pytest.raises(ValueError, match="repeats=0"):
        measure_latency(model, batch.pixel_values, batch.input_ids, batch.attention_mask, repeats=0)


def test_peak_memory_bytes__cpu_is_in_bytes() -> None:
    reset_peak_memory("cpu")
    assert peak_memory_bytes("cpu") > 50 * 2**20  # torch alone is more than that
