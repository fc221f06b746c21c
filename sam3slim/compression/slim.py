"""A slimmer architecture as a method: cut out of the model and fitted on unlabelled images, without a gradient step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from sam3slim.artifacts import ArtifactInfo
from sam3slim.compression.casts import WeightsOnly
from sam3slim.compression.mixed import Mixed
from sam3slim.compression.registry import Batches, Compressed, compress, method_from_name, register
from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.files import write_json
from sam3slim.models import Sam3
from sam3slim.slimming import Plan, check_slimmer, fit_model, inherit
from sam3slim.specs import ModelSpec

KEY = "compress.slim"
PLAN_FILE = "slimming_plan.json"  # in the folder of the record, as a training has it


@dataclass(frozen=True)
class Slim:
    """What ``train.py init=pruned trainer.max_steps=0`` gives, beside the other methods.

    Attributes:
        model: option of the model group that is cut out; image size and vocabulary stay those of the checkpoint.
        overrides: of that group, such as ``model/encoder=l2``.
        fit_batches: of images with phrases, unlabelled, to fit it on, see ``slimming.fit_model``; 0: not at all.
        importance, depth: what is kept, see ``slimming.inherit``.
        then: how its weights are stored, a method without images; (): FP32. A command line may list several, each of
            which is a row of its own (``rows``).
    """

    name: ClassVar[str] = "slim"
    model: str = "slim"
    overrides: tuple[str, ...] = ()
    fit_batches: int = 8
    importance: Literal["magnitude", "uniform"] = "magnitude"
    depth: Literal["even", "first"] = "even"
    then: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from sam3slim.launch.compose import check_options  # Hydra, which other methods have no use for

        check_options(f"{KEY}.model", [self.model], "model")
        if self.fit_batches < 0:
            raise UserError(f"{KEY}.fit_batches={self.fit_batches} must be at least 0, which fits nothing")
        for name in self.then:
            if name in (Slim.name, Mixed.name):
                raise UserError(
                    f"{KEY}.then={name} must be a method that stores weights as they are; compress the artifact of "
                    f"slim by {name} in a second command (checkpoint=OUTPUT/slim/artifact reference=OUTPUT/full)"
                )
            method_from_name(name)

    @property
    def needs_batches(self) -> bool:
        """Whether it looks at images."""
        return self.fit_batches > 0

    def check(self, model: Sam3) -> None:
        """Refuse a model that the architecture cannot be cut out of. Raises UserError."""
        self.target(model.spec)

    def target(self, source: ModelSpec) -> ModelSpec:
        """The architecture to cut out of ``source``. Raises UserError where that cannot be."""
        from sam3slim.launch.compose import compose_model

        given = compose_model([f"model={self.model}", *self.overrides])
        text = replace(given.text, vocab_size=source.text.vocab_size, vocabulary=source.text.vocabulary)
        same = given.vit.patch_size == source.vit.patch_size  # other patches are refused below, by their own words
        side = source.vit.image_size if same else given.vit.image_size
        target = replace(given, text=text, vit=replace(given.vit, image_size=side))
        check_slimmer(source, target)
        return target


@dataclass
class Slimmed:
    """A cut model and how it is stored; see ``Compressed``.

    Attributes:
        stored: what the method behind it has made of ``model``.
    """

    model: Sam3
    plan: Plan
    stored: Compressed
    method: dict[str, Any]

    @property
    def precision(self) -> str:
        return self.stored.precision

    @property
    def images_used(self) -> int:
        return self.plan.fit.images if self.plan.fit else 0

    def stored_as(self, method: Slim) -> Slimmed:
        """The same model, stored as ``method`` says: it is neither cut nor fitted again."""
        return replace(self, stored=_stored(self.model, method), method={**self.method, "then": list(method.then)})

    def describe(self) -> str:
        """The plan, and what is stored."""
        return f"{self.plan.describe()}\n{self.stored.describe()}"

    def write(self, model: Sam3, folder: str | Path, **metadata: Any) -> ArtifactInfo:
        """The artifact, and the plan beside its folder; ``model`` is the one that was cut."""
        extra = {**(metadata.pop("extra", None) or {}), "slimming": {**self.plan.metadata(), "method": self.method}}
        info = self.stored.write(self.model, folder, extra=extra, **metadata)
        write_json(Path(folder).parent / PLAN_FILE, self.plan.to_dict())
        return info


@register(Slim)
def slim(model: Sam3, method: Slim, batches: Batches | None = None) -> Slimmed:
    target = method.target(model.spec)
    given: list[Batch] = []
    if method.needs_batches:
        if batches is None:
            raise UserError(f"{KEY}.fit_batches={method.fit_batches} needs unlabelled images; use 0 where are none")
        given = [batch.to(model.device) for batch in islice(batches(method.fit_batches), method.fit_batches)]
    small, plan = inherit(model, target, importance=method.importance, depth=method.depth)
    if method.needs_batches:
        print(f"fitting {target.name} on {sum(len(batch.pixel_values) for batch in given)} unlabelled images")
        small.to(model.device)  # type: ignore[arg-type]
        asked = method.fit_batches
        plan = replace(plan, fit=fit_model(model, small, plan, given, key=f"{KEY}.fit_batches", asked=asked))
        small.to("cpu")  # type: ignore[arg-type]
    return Slimmed(small, plan, _stored(small, method), {})


def _stored(model: Sam3, method: Slim) -> Compressed:
    stored: Compressed = compress(model, method_from_name(method.then[0]) if method.then else WeightsOnly())
    return stored


def rows(name: str, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of one entry of the compress group: itself, and one more for each method that ``then`` lists."""
    listed = options.get("then")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        return {name: options}
    own = {"method": name, **options}
    return {name: {**options, "then": []}} | {f"{name}_{then}": {**own, "then": [then]} for then in listed}
