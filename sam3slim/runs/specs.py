"""What the three commands are told: ``conf/{train,evaluate,compress}.yaml`` after composition, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sam3slim.checkpoints import IMAGE_SIZE
from sam3slim.compression import fake_method, rows
from sam3slim.data.spec import DataSpec
from sam3slim.distill import DistillSpec
from sam3slim.launch.compose import check_options
from sam3slim.losses import LossSpec
from sam3slim.models.compiled import Compile
from sam3slim.results.costs import measures_latency
from sam3slim.results.metrics import check_metric
from sam3slim.runtimes.registry import RUNTIMES, all_arithmetics
from sam3slim.slimming import Depth, Importance, check_rule
from sam3slim.specs import ModelSpec
from sam3slim.strict import SpecError, spec_from_dict
from sam3slim.training import OptimSpec, ScheduleSpec, check_trainer, precision_of

MOST_SEED = 2**32 - 1  # numpy's


def check_seed(seed: int) -> None:
    """Raises SpecError for a seed that a random generator refuses."""
    if not 0 <= seed <= MOST_SEED:
        raise SpecError(f"seed={seed}: expected 0 to {MOST_SEED}")


@dataclass(frozen=True)
class InitSpec:
    """Where the first weights come from: ``scratch``, a ``checkpoint`` of the same architecture, or ``pruned``.

    Attributes:
        importance, depth: what ``pruned`` keeps, see ``slimming.inherit``.
        importance_batches: training batches that ``activation``, ``taylor`` and ``depth=greedy`` look at.
        protect_global: False lets ``depth=greedy`` remove blocks with global attention, too.
        fresh_box_labels: draw the vectors of positive and negative boxes anew, see ``models.init.fresh_box_labels``;
            for checkpoints that were not trained with boxes.
        fit_batches: training batches to fit the cut model on, see ``slimming.fit_model``; 0: not at all.
        vision: a pre-trained plain ViT that the vision tower starts from, see ``checkpoints.plain_vit``; None: none.
        vision_batches: training batches to fit it on, see ``slimming.adopt_vision``.
    """

    kind: Literal["scratch", "checkpoint", "pruned"] = "scratch"
    checkpoint: str | None = None
    overrides: dict[str, Any] | None = None
    allow_fresh: tuple[str, ...] = ()
    importance: Importance = "magnitude"
    depth: Depth = "even"
    importance_batches: int = 4
    protect_global: bool | None = None
    fit_batches: int = 0
    fresh_box_labels: bool = False
    vision: str | None = None
    vision_batches: int = 8

    def __post_init__(self) -> None:
        self._check_vision()
        check_rule(self.importance, self.depth)
        if self.importance_batches < 1:
            raise SpecError(f"init.importance_batches={self.importance_batches} must be at least 1")
        if self.fit_batches < 0:
            raise SpecError(f"init.fit_batches={self.fit_batches} must be at least 0, which fits nothing")
        if self.kind == "pruned":
            if self.allow_fresh:
                raise SpecError(
                    f"init.allow_fresh={list(self.allow_fresh)} is for init=checkpoint; a pruned model keeps "
                    "weights of every part"
                )
            return
        for key in ("importance", "depth", "fit_batches", "protect_global"):
            if getattr(self, key) != type(self).__dataclass_fields__[key].default:
                raise SpecError(
                    f"init.{key}={getattr(self, key)} is for init=pruned; init={self.kind} cuts nothing: remove it, or "
                    "set init=pruned"
                )

    def _check_vision(self) -> None:
        if self.vision_batches < 1:
            raise SpecError(f"init.vision_batches={self.vision_batches} must be at least 1")
        if self.vision is None:
            return
        if self.kind == "checkpoint":
            raise SpecError(
                f"init.vision={self.vision} replaces the vision tower, and init=checkpoint loads one; set "
                "init.vision=null, or init=pruned for the other parts of the checkpoint"
            )
        if self.fit_batches:
            raise SpecError(
                f"init.fit_batches={self.fit_batches} fits a tower that was cut, and init.vision={self.vision} puts "
                "another in its place; set init.fit_batches=0 (init.vision_batches says on how much it is fitted)"
            )


@dataclass(frozen=True)
class TrainSpec:
    """``conf/train.yaml`` after composition, checked. ``trainer``, ``callbacks`` and ``logger`` are built late.

    Attributes:
        vocabulary: what the text tower's vocabulary is trimmed to: ``data``, the category names of every split the
            run uses, or a file with a phrase on every line; None leaves it whole.
        activation_checkpointing: see ``training.recompute_activations``.
        compile: see ``models.compiled.compile_layers``; a live teacher is compiled as well.
        force: train again although the folder's record says that just this has been trained.
        compress_after: options of the compress group, applied to the trained model.
        qat: quantisation-aware training: the method of compression whose rounded weights every step computes with, or
            its options with ``method``; see ``compression.FakeQuantised``. None: none.
        metric: the one that decides (best checkpoint, search, ``compress_after``); None: mask mAP, box mAP without
            masks.
        cost: what a search minimises beside it, see ``results.costs``; None: bytes.
        latency: measure that of the trained model and of what ``compress_after`` makes; None: where ``cost`` needs it.
    """

    name: str
    model: ModelSpec
    data: DataSpec
    init: InitSpec
    distill: DistillSpec
    loss: LossSpec
    optim: OptimSpec
    schedule: ScheduleSpec
    trainer: dict[str, Any]
    callbacks: dict[str, Any] | None
    logger: dict[str, Any] | None
    output_dir: str
    seed: int = 0
    resume: str | None = None
    vocabulary: str | None = None
    eval_at_end: bool = True
    activation_checkpointing: bool = False
    compile: Compile = False
    force: bool = False
    compress_after: tuple[str, ...] = ()
    qat: str | dict[str, Any] | None = None
    metric: str | None = None
    cost: str | None = None
    latency: bool | None = None
    experiment: Any = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        self._check_sharded()
        check_metric(self.metric)
        _ = self.measures_latency  # checks what it needs
        check_options("compress_after", self.compress_after, "compress")
        check_trainer(self.trainer)
        if isinstance(steps := self.trainer.get("max_steps"), int) and steps > 0:
            self.schedule.check_fits(steps)
        precision_of(self.trainer)
        if self.compile and "fsdp" in self.sharding:
            raise SpecError(
                f"compile={str(self.compile).lower()} is not for trainer=fsdp, whose hooks gather weights between the "
                "compiled layers; set trainer=ddp, or compile=false"
            )
        if self.data.kind == "pictures":
            raise SpecError(
                "data=pictures is for evaluate.py and compress.py, which measure agreement with a full model; train on "
                "pictures with data=coco data.phrases=FILE distill.labels=false, which is validated on annotated ones"
            )
        if self.data.phrases is not None and self.distill.labels:
            raise SpecError(
                f"data.phrases={self.data.phrases}: pictures without annotations teach nothing by themselves; "
                "set distill=full distill.labels=false, or data.phrases=null"
            )
        if self.init.kind == "scratch" and (missing := self.distill.missing_objectives):
            raise SpecError(
                "distill.labels=false with init=scratch, but nothing teaches some outputs, which stay random: set "
                f"{', '.join(missing)} above 0 (distill=full does), or distill.labels=true, or start from weights "
                "(init=pruned or init=checkpoint)"
            )
        if self.optim.lora is not None and self.init.kind == "scratch":
            raise SpecError(
                "optim.lora leaves the weights as they are, and init=scratch draws them at random; start from a "
                "checkpoint (init=checkpoint init.checkpoint=PATH), or set optim.lora=null"
            )
        sizes = self.data.sizes_of(self.model)
        if len(sizes) > 1 and self.distill.image_size == "student" and self.distill.cache is not None:
            raise SpecError(
                f"data.image_sizes={list(sizes)} with distill.image_size=student: distill.cache keeps a teacher's "
                "answers at one size; set distill.image_size=null (they are resized), or distill.cache=null"
            )
        self._check_boxes()
        self._check_rounding()
        if not self.distill.labels and self.init.kind == "pruned" and self.init.importance == "taylor":
            raise SpecError(
                "init.importance=taylor needs the loss against labels, and distill.labels=false; "
                "choose activation or magnitude"
            )
        if self.model.text.bank is not None:
            raise SpecError(
                "model.text.bank: a prompt bank has no text tower to train; train without it, and make the bank of the "
                "result (sam3slim text CHECKPOINT OUT --phrases FILE --bank)"
            )

    @property
    def qat_options(self) -> dict[str, Any]:
        """Those of ``qat``'s method that were given."""
        return {k: v for k, v in self.qat.items() if k != "method"} if isinstance(self.qat, dict) else {}

    @property
    def rounding(self) -> Any:
        """The method of compression that ``qat`` names, with its options; None: none."""
        if self.qat is None:
            return None
        name = self.qat.get("method") if isinstance(self.qat, dict) else self.qat
        if name is None:
            raise SpecError(f"qat={self.qat} names no method; write 'qat={{method: int4_weight, …}}'")
        return fake_method(str(name), **self.qat_options)

    def _check_rounding(self) -> None:
        if self.rounding is None:
            return
        if self.optim.lora is not None:
            raise SpecError(
                "qat rounds the weights that are trained, and optim.lora leaves them as they are; set "
                "optim.lora=null, or qat=null"
            )
        if "fsdp" in self.sharding:
            raise SpecError("qat rounds whole weights, and trainer=fsdp shards them; use trainer=ddp, or qat=null")

    def _check_boxes(self) -> None:
        share = self.data.boxes.share
        if share and not self.distill.labels:
            raise SpecError(
                f"data.boxes.share={share:g}: boxes are drawn from annotations, at which distill.labels=false does not "
                "look; set distill.labels=true, or data.boxes.share=0"
            )
        if share and self.distill.cache is not None:
            raise SpecError(
                f"data.boxes.share={share:g}: distill.cache keeps a teacher's answers to phrases, not to boxes; set "
                "distill.cache=null, or data.boxes.share=0"
            )

    def _check_sharded(self) -> None:
        """What FSDP2 cannot do: processes gather weights together, and each may have another number of parts."""
        strategy = self.trainer.get("strategy")
        if not (isinstance(strategy, dict) and str(strategy.get("_target_")).endswith("FullySharded")):
            return
        if self.data.max_prompts_per_batch is not None:
            raise SpecError(
                f"data.max_prompts_per_batch={self.data.max_prompts_per_batch} does not work with trainer=fsdp, whose "
                "processes gather weights together; use trainer=ddp, or a smaller data.batch_size"
            )
        if self.optim.kind == "adamw8bit":
            raise SpecError("optim=adamw8bit does not work with trainer=fsdp; use optim=adamw, or trainer=ddp")
        if self.optim.lora is not None:
            raise SpecError("optim.lora does not work with trainer=fsdp, nor needs it; use trainer=ddp")

    @property
    def measures_latency(self) -> bool:
        """Raises SpecError where something asks for a latency that nothing would measure."""
        return measures_latency(self.cost, self.latency, eval_at_end=self.eval_at_end)

    @property
    def sharding(self) -> str:
        """The strategy's name in lower case: ``fsdp`` is in that of every one that shards."""
        strategy = self.trainer.get("strategy")
        name = str(strategy.get("_target_") if isinstance(strategy, dict) else strategy).lower()
        return name.replace("fullysharded", "fsdp")


@dataclass(frozen=True)
class EvaluateSpec:
    """``conf/evaluate.yaml`` after composition, checked.

    Attributes:
        overrides: those of ``checkpoints.load``; image_size: another one than the checkpoint's, in pixels.
        reference: output folder of the run that drops are counted against.
        runtime: what runs the model, see ``runtimes``; None: PyTorch, and for ONNX graphs ONNX Runtime.
        arithmetic: what it computes in; ``auto``: as stored.
        compile: see ``models.compiled.compile_layers``.
        predictions: also write what was found, for other evaluators: ``coco`` results, or SA-Co's (``saco``).
        max_detections: kept per image; None: 100, or 300 in a federated set.
    """

    name: str
    checkpoint: str
    data: DataSpec
    output_dir: str
    limit: int | None = None
    device: str = "auto"
    threads: int | None = None
    latency: bool = True
    runtime: str | None = None
    compile: Compile = False
    overrides: dict[str, Any] | None = None
    image_size: int | None = None
    reference: str | None = None
    seed: int = 0
    arithmetic: str = "auto"
    predictions: Literal["coco", "saco"] | None = None
    max_detections: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.max_detections is not None and self.max_detections < 1:
            raise SpecError(
                f"max_detections={self.max_detections} must be at least 1, or null for COCO's and LVIS' own"
            )
        object.__setattr__(self, "data", self.data.measured())  # one of several sets
        if self.predictions is not None and self.data.kind == "pictures":
            raise SpecError(
                f"predictions={self.predictions} writes what annotations are compared with, and data=pictures has "
                "none; set predictions=null (sam3slim predict writes detections)"
            )
        if self.image_size is not None:
            object.__setattr__(self, "overrides", {**(self.overrides or {}), IMAGE_SIZE: self.image_size})
        known = ("auto", *all_arithmetics())
        if self.arithmetic not in known:
            raise SpecError(f"arithmetic={self.arithmetic} must be one of {', '.join(known)}")
        if self.runtime is not None:
            self._check_runtime(self.runtime)

    def _check_runtime(self, name: str) -> None:
        if name not in RUNTIMES:
            raise SpecError(f"runtime={name} must be one of {', '.join(RUNTIMES)}, or null for the checkpoint's own")
        able = RUNTIMES[name].arithmetics
        if self.arithmetic not in ("auto", *able):
            others = [other.name for other in RUNTIMES.values() if self.arithmetic in other.arithmetics]
            raise SpecError(
                f"arithmetic={self.arithmetic}: {RUNTIMES[name].title} computes in {', '.join(able)}; set one of them "
                f"or auto, or runtime={'|'.join(others)}"
            )
        if self.compile and name != "eager":
            raise SpecError(
                f"compile={str(self.compile).lower()} compiles PyTorch's layers as they are called, which runtime="
                f"{name} {'does anyway' if name == 'compile' else 'does not have'}; set compile=false"
            )


@dataclass(frozen=True)
class BudgetSpec:
    """What ``mixed`` may cost, and where methods measure and look.

    Attributes:
        max_drop: points of ``metric``.
        max_bytes: of the stored weights.
        search_split: split of the data.
        search_reference: output folder of the model that a search counts drops against, measured on the search split;
            None: the checkpoint itself.
        search_limit: measure on its first so many images; None: as ``limit`` says.
        calibration_split: whose images methods look at (fitting, compensated rounding), unlabelled.
        metric: the one that decides, also which method the table recommends; None: mask mAP, box mAP without masks.
    """

    max_drop: float | None = None
    max_bytes: int | None = None
    search_split: str = "val"
    search_reference: str | None = None
    search_limit: int | None = None
    calibration_split: str = "train"
    metric: str | None = None

    def __post_init__(self) -> None:
        check_metric(self.metric, "compress.metric")
        for key, least in (("max_drop", 0), ("max_bytes", 0), ("search_limit", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise SpecError(f"compress.{key}={value:g} must be at least {least}")

    @property
    def given(self) -> bool:
        return self.max_drop is not None or self.max_bytes is not None


@dataclass(frozen=True)
class CompressSpec(EvaluateSpec):
    """``conf/compress.yaml`` after composition, checked: a budget, and one entry of options per method."""

    compress: dict[str, Any] = field(default_factory=dict)

    @property
    def budget(self) -> BudgetSpec:
        """The entries that are no method. Raises SpecError for one that does not exist."""
        return spec_from_dict(
            BudgetSpec, {k: v for k, v in self.compress.items() if not isinstance(v, dict)}, "compress"
        )

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Row of the table → options: an entry that is stored in several ways (``slim``) has as many rows."""
        entries = {name: options for name, options in self.compress.items() if isinstance(options, dict)}
        return {row: own for name, options in entries.items() for row, own in rows(name, options).items()}
