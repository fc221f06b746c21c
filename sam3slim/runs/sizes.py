"""A training at several image sizes: what its model measures at each."""

from __future__ import annotations

from dataclasses import replace

from sam3slim.checkpoints import IMAGE_SIZE
from sam3slim.evaluation import evaluate
from sam3slim.launch.run import Run
from sam3slim.models import Sam3
from sam3slim.results.metrics import main_metric
from sam3slim.results.record import RunRecord
from sam3slim.runs.measure import add_result, summary_of
from sam3slim.runs.reference import save_samples
from sam3slim.runs.specs import TrainSpec

SIZES = "sizes"  # folder of the records at other image sizes, in the run's folder


def measure_other_sizes(spec: TrainSpec, run: Run, record: RunRecord, model: Sam3) -> None:
    """Every size of ``data.image_sizes`` but the model's own, of which ``record`` tells, gets one in ``sizes/SIDE``.

    The measured set is read again at that size. The model is the same: no tensor depends on the size.
    """
    own, *others = spec.data.sizes_of(spec.model)
    data = replace(spec.data.measured(), image_sizes=None)
    for size in [own, *others] if others else ():
        if size == own:
            measured = record
        else:
            sizes = replace(spec.model, vit=replace(spec.model.vit, image_size=size))
            config = {**run.config, "model": sizes.to_dict()}
            part = run.part(f"{SIZES}/{size}", config, "evaluate")
            with part.recording(str(run.folder)) as measured:
                measured.model = summary_of(sizes, record.model.params_by_part)
                measured.artifact = replace(record.artifact, overrides={IMAGE_SIZE: size})
                there = data.build(sizes, spec.seed)
                result = evaluate(model, there.loader(spec.data.split))
                add_result(measured, result, there, data)
                save_samples(result.samples, part.folder)
        metric = main_metric(measured, spec.metric)
        if (value := measured.metrics.value(metric)) is not None:
            print(f"{size} px ({spec.data.split}): {metric.sentence(value)}")
