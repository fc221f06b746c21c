"""``train``: initial weights, Lightning, the best model as an artifact, and smaller artifacts of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessRaisedException

from sam3slim.artifacts import write_artifact
from sam3slim.artifacts.trained import trained_prompts
from sam3slim.checkpoints import load
from sam3slim.compression import FakeQuantised
from sam3slim.data.module import ConceptData
from sam3slim.distill import CachedTeacher, FrozenTeacher
from sam3slim.environment import describe_device
from sam3slim.errors import UserError
from sam3slim.evaluation import evaluate as evaluate_model
from sam3slim.files import ensure_writable_dir, read_json, write_json
from sam3slim.launch.compose import build, compose_run
from sam3slim.launch.run import Run
from sam3slim.launch.trial import Done
from sam3slim.losses import Criterion
from sam3slim.models import Sam3
from sam3slim.models.compiled import compile_layers, require_compiler
from sam3slim.results.record import RunRecord, TrainingSummary, plain
from sam3slim.results.recording import begin, forget, forget_made_from, is_first_process
from sam3slim.runs.compress import compress_unfinished
from sam3slim.runs.initial import Initial, Known, check_initial, initial_model, training_device
from sam3slim.runs.measure import (
    add_result,
    back_to_cpu,
    data_summary,
    latency_of,
    model_summary,
    print_metrics,
    print_set,
    written_artifact,
)
from sam3slim.runs.reference import load_samples, save_samples
from sam3slim.runs.resume import check_trained_parameters, resume_path, tell_differences
from sam3slim.runs.sizes import measure_other_sizes
from sam3slim.runs.specs import CompressSpec, TrainSpec
from sam3slim.runs.teacher import check_teaching, teacher_of, training_data
from sam3slim.runs.trained import tell_seen, tell_untrained, training_summary
from sam3slim.runs.vocabulary import with_vocabulary
from sam3slim.runtimes.eager import to_device
from sam3slim.slimming import Greedy, VisionFit
from sam3slim.strict import spec_from_dict
from sam3slim.training import (
    ConceptSegmentation,
    FinalValidation,
    GracefulStop,
    RandomState,
    StreamedCheckpoints,
    TrainingClock,
    add_lora,
    precision_plugins,
    recompute_activations,
)
from sam3slim.training.signals import forwarded_sigterm

COMPRESSED = "compressed"  # folder of the smaller artifacts, in the run's folder
SETS = "sets"  # folder of the records of the other data sets of several, in the run's folder
PLAN_FILE = "slimming_plan.json"  # what an inherited model kept, in the run's folder
VISION_FILE = "vision.json"  # how well the tower does what init.vision did, in the run's folder


def train_and_compress(spec: TrainSpec, run: Run) -> Done:
    """Train and compress as composed, but for what the folder has finished records of; ``force`` does all again.

    Returns:
        The training's record, then one per method.

    Raises:
        UserError: as ``train`` and ``compress``.
    """
    if spec.force:
        rank_zero_only(forget)(run.folder)
    record = None if spec.force else run.finished()
    fresh = record is None
    if record is None:
        rank_zero_only(forget_made_from)(run.folder / COMPRESSED)
        record = train(spec, run)
    else:
        rank_zero_only(print)(f"{run.folder} is finished, with just this configuration; force=true trains it again")
    records = [record]
    if spec.compress_after and getattr(rank_zero_only, "rank", 0) == 0:
        smaller, compressed = _compress(spec, run)
        records += smaller
        fresh = fresh or compressed
    return Done(tuple(records), fresh, spec.metric, spec.cost or "bytes")


def _compress(spec: TrainSpec, run: Run) -> tuple[list[RunRecord], bool]:
    """The records of ``compress_after``, and whether any had to be made."""
    artifact = run.folder / "artifact"
    if artifact.is_relative_to(Path.cwd()):
        artifact = artifact.relative_to(Path.cwd())  # the same on another machine
    # Unless asked for: trials may run side by side, where a latency means nothing.
    latency = f"latency={str(spec.measures_latency).lower()}"
    given = [f"checkpoint='{artifact}'", f"compress=[{','.join(spec.compress_after)}]", latency]
    given += [] if spec.metric is None else [f"compress.metric={spec.metric}"]
    composed = compose_run("compress", given, run.folder / COMPRESSED)
    config = {**composed.config, "data": run.config["data"], "seed": spec.seed}
    if spec.rounding is not None and spec.rounding.name in spec.compress_after:  # as it was trained
        name = spec.rounding.name
        config["compress"] = {**config["compress"], name: {**config["compress"][name], **spec.qat_options}}
    smaller = replace(composed, config=config, choices=run.choices, command=run.command)
    asked = spec_from_dict(CompressSpec, config, "")
    if load_samples(run.folder):  # the training has just measured the model, so it is not measured again
        asked = replace(asked, reference=str(run.folder))
    return compress_unfinished(asked, smaller, force=spec.force)


def train(asked: TrainSpec, run: Run) -> RunRecord:
    """Train as composed; leaves checkpoints, logs, the best model as an artifact, and ``record.json``.

    Raises:
        UserError: bad input, before training starts; a loss that is not finite.
    """
    output_dir = ensure_writable_dir(run.folder)
    with run.recording(asked.init.checkpoint) as record, flushed_denormals():
        spec = with_vocabulary(asked)
        require_compiler(spec.compile, training_device(spec))
        resume = resume_path(spec, output_dir)
        if resume is not None:
            rank_zero_only(tell_differences)(Path(resume), run.config)
        lightning.seed_everything(spec.seed, verbose=False)
        data = training_data(spec)
        validated = ["val"] if spec.trainer.get("limit_val_batches") != 0 else []
        measured = [*validated, *([spec.data.split] if spec.eval_at_end else [])]
        data.require(*measured)  # not hours later
        check_teaching(spec)
        check_initial(spec)
        masks = spec.distill.labels and data.train_masks()
        initial = initial_model(spec, data, _known(output_dir) if resume is not None else None)
        model = initial.model
        if initial.plan is not None and initial.plan.greedy is not None:
            spec = replace(spec, model=model.spec)  # which blocks are global, too, has been found out
        for name, found in ((PLAN_FILE, initial.plan), (VISION_FILE, initial.vision)):
            if found is not None:
                rank_zero_only(write_json)(output_dir / name, found.to_dict())
        record.model = model_summary(model)
        record.data = data_summary(spec.data.measured(), data.parts[spec.data.measured_set])
        if spec.trainer["max_steps"] == 0:
            _keep_initial(spec, run, data, record, initial)
            return record
        teacher = teacher_of(spec, data)
        module = training_module(spec, model, teacher, run.config, masks=masks)
        if (method := spec.rounding) is not None:
            module.rounding = FakeQuantised(model, method)
            rank_zero_only(print)(f"qat={method.name}: {len(module.rounding.keys)} weights are rounded in every step")
        if resume is not None:
            check_trained_parameters(Path(resume), model, module.unused)
        for net in (model, teacher.model) if isinstance(teacher, FrozenTeacher) else (model,):
            compile_layers(net, spec.compile, training_device(spec))
        trainer = build_trainer(spec, output_dir)
        record.training = training_summary(module, spec, masks=masks)
        rank_zero_only(tell_untrained)(record.training)
        rank_zero_only(tell_seen)(data, measured, spec.data.validated)
        begin(record, output_dir)
        try:
            with forwarded_sigterm(trainer):
                trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        except (SystemExit, KeyboardInterrupt) as error:  # Lightning answers Ctrl-C with the first
            last = output_dir / "checkpoints/last.ckpt"
            if last.is_file():
                print(f"stopped; {last} is saved: go on with resume=auto hydra.run.dir={output_dir}")
            raise KeyboardInterrupt from error
        except ProcessRaisedException as error:  # from a process that Lightning forked
            raise (bad_input_of(error) or error) from None
        first = trainer.is_global_zero
        _part(data)
        if first:
            best, _ = load(result_of(spec, output_dir), expect=spec.model)
            _write_result(spec, run, data, record, replace(initial, model=best))
    return record


def training_module(
    spec: TrainSpec,
    model: Sam3,
    teacher: FrozenTeacher | CachedTeacher | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    masks: bool = True,
) -> ConceptSegmentation:
    """What Lightning trains: ``model`` with loss, optimiser and schedule of ``spec``.

    Args:
        config: kept in checkpoints.
        masks: whether the training targets have masks.
    """
    if spec.optim.lora is not None:
        add_lora(model, spec.optim.lora, spec.optim.freeze)
    if spec.activation_checkpointing:
        recompute_activations(model)
    return ConceptSegmentation(
        model,
        Criterion(spec.loss) if spec.distill.labels else None,
        spec.optim,
        spec.schedule,
        one_to_many=spec.loss.one_to_many,
        teacher=teacher,
        masks=masks,
        boxes=bool(spec.data.boxes.share),
        max_prompts=spec.data.max_prompts_per_batch,
        metric=spec.metric,
        config=plain(config or {}),
    )


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Adam's second moments decay into denormal numbers, which CPUs handle a hundred times slower: they become 0."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)  # of the whole process, and PyTorch's default


def bad_input_of(error: ProcessRaisedException) -> UserError | None:
    """The UserError for what ended a forked process, of which only the traceback's text arrives; None for a bug."""
    if "Autograd-and-Fork" in str(error):
        return UserError(
            "trainer.strategy=ddp_fork cannot be used: on a machine with a GPU, a process that has computed gradients "
            "(init.importance=taylor does) cannot fork others that will; set trainer=cpu, or trainer=ddp "
            "trainer.accelerator=cpu trainer.precision=32-true trainer.devices=2, whose processes start anew"
        )
    kinds = [UserError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    name, _, message = str(error).strip().splitlines()[-1].partition(": ")
    return UserError(message) if name in {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds} else None


def _known(folder: Path) -> Known:
    """What a run that goes on found when it began: its weights come from a checkpoint, so nothing is done again."""
    vision, plan = (
        read_json(folder / name, "start the training anew") if (folder / name).is_file() else {}
        for name in (VISION_FILE, PLAN_FILE)
    )
    greedy = plan.get("greedy")
    return Known(VisionFit.from_dict(vision) if vision else None, Greedy.from_dict(greedy) if greedy else None)


def _part(data: ConceptData) -> None:
    """What follows training is one process's work: on all images, waiting for nobody."""
    data.trainer = None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _keep_initial(spec: TrainSpec, run: Run, data: ConceptData, record: RunRecord, initial: Initial) -> None:
    """``trainer.max_steps=0``: the weights a training would start from are the result; nothing is left to resume."""
    record.training = TrainingSummary(retrained=False, trained_params=0)
    rank_zero_only(print)("trainer.max_steps=0: not retrained, the initial weights are the result")
    begin(record, run.folder)
    if is_first_process():
        data.prepare_data()  # in a training Lightning asks for it
        _write_result(spec, run, data, record, initial)


def _write_result(spec: TrainSpec, run: Run, data: ConceptData, record: RunRecord, initial: Initial) -> None:
    """Measure ``initial.model``, where it was trained, and write it as an artifact that names its metrics."""
    model, plan, vision = initial.model, initial.plan, initial.vision
    metrics: dict[str, Any] = {}
    output_dir = run.folder
    if spec.eval_at_end:
        to_device(model, training_device(spec), "fp32")
        result = evaluate_model(model, data.loader(spec.data.split))
        add_result(record, result, data.parts[spec.data.measured_set], spec.data.measured())
        save_samples(result.samples, output_dir)
        if spec.measures_latency:
            record.latency_ms = latency_of(model, data.loader(spec.data.split))
            record.device = describe_device(model.device)  # which may not be the one that PyTorch would choose
        metrics = {"split": spec.data.split, "arithmetic": "fp32", **result.metrics}
    metadata = {"command": record.command, "seed": spec.seed, "git": record.git or None, "device": record.device}
    extra = {
        **metadata,
        "data": record.data or None,
        "retrained": bool(record.training.retrained),
        "training_seconds": training_seconds(output_dir),
        "versions": record.versions,
        **({"image_sizes": record.training.image_sizes} if record.training.image_sizes else {}),
        **(
            {"qat": {"method": spec.rounding.name, **spec.qat_options}}
            if spec.rounding and record.training.retrained
            else {}
        ),
        **({"slimming": plan.metadata()} if plan else {}),
        **({"vision": vision.to_dict()} if vision else {}),
    }
    info = write_artifact(
        model, output_dir / "artifact", parent=spec.init.checkpoint, metrics=plain(metrics), extra=plain(extra),
        trained_prompts=trained_prompts(spec.init.checkpoint, boxes=bool(spec.data.boxes.share)),
    )  # fmt: skip
    record.artifact = written_artifact(info, "fp32")
    print_metrics(record)
    print(f"written: {info.path}")
    if spec.eval_at_end:
        _measure_other_sets(spec, run, data, record, model)
        measure_other_sizes(spec, run, record, model)
        back_to_cpu(model)


def _measure_other_sets(spec: TrainSpec, run: Run, data: ConceptData, record: RunRecord, model: Sam3) -> None:
    """Every data set but the one that the training's own record tells of gets a record in ``sets/NAME``."""
    for name, one in spec.data.each().items():
        if name == spec.data.measured_set:
            print_set(record, spec.metric)
            continue
        part = run.part(f"{SETS}/{name}", {**run.config, "data": {**run.config["data"], "set": name}}, "evaluate")
        with part.recording(str(run.folder)) as measured:
            measured.model, measured.artifact = record.model, record.artifact
            result = evaluate_model(model, data.parts[name].loader(spec.data.split))
            add_result(measured, result, data.parts[name], one)
            save_samples(result.samples, part.folder)
            print_set(measured, spec.metric)


def result_of(spec: TrainSpec, output_dir: Path) -> Path:
    """What training made: the best weights that were validated, or the last where nothing is."""
    return output_dir / "checkpoints/last.ckpt" if spec.trainer.get("limit_val_batches") == 0 else output_dir


def training_seconds(run: Path) -> int:
    """Seconds in ``fit`` up to the last checkpoint, over all resumed parts (the clock is in the checkpoint)."""
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return 0  # nothing was trained
    content = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
    return round(content["callbacks"][TrainingClock.__name__]["seconds"])


def build_trainer(spec: TrainSpec, output_dir: Path) -> lightning.Trainer:
    """Lightning's trainer with the configured callbacks and loggers, and those every run needs."""
    configured = dict(spec.callbacks or {})
    if not spec.logger:  # Lightning refuses to watch rates that nobody logs
        configured = {k: v for k, v in configured.items() if not str(v.get("_target_")).endswith("LearningRateMonitor")}
    if not spec.trainer.get("enable_progress_bar", True):
        configured.pop("progress", None)  # Lightning refuses a bar that is switched off
    callbacks = list(build(configured).values())
    callbacks += [RandomState(), TrainingClock(), FinalValidation(), GracefulStop(output_dir / "checkpoints")]
    rank_zero_only(_keep_earlier_metrics)(output_dir)
    _silence_remarks()
    loggers = list((build(spec.logger) if spec.logger else {}).values())
    precision = precision_plugins(spec.trainer, training_device(spec))
    trainer: lightning.Trainer = build(
        {key: value for key, value in spec.trainer.items() if not (precision and key == "precision")},
        callbacks=callbacks,
        plugins=[StreamedCheckpoints(), *precision],
        logger=loggers or False,
        default_root_dir=str(output_dir),
        gradient_clip_val=spec.optim.clip or None,
        # The sampler deals out the ranks' shares itself and continues inside an epoch.
        use_distributed_sampler=False,
    )
    return trainer


def _silence_remarks() -> None:
    """Lightning advertises a logger, says that all batches are used, and misses workers for pictures kept in memory."""
    remarks = ("Tip: ", "so 100% of the batches")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(remark in record.getMessage() for remark in remarks)
    )
    warnings.filterwarnings("ignore", ".*does not have many workers")


def _keep_earlier_metrics(output_dir: Path) -> None:
    """Lightning's CSV logger starts its file anew; what an interrupted run logged is set aside as metrics.N.csv."""
    file = output_dir / "csv" / "metrics.csv"
    if file.is_file() and file.stat().st_size:
        file.rename(file.with_name(f"metrics.{len(list(file.parent.glob('metrics.*.csv')))}.csv"))
