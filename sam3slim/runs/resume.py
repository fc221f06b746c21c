"""``resume``: which checkpoint a run goes on from, and whether it can."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sam3slim.checkpoints import locate
from sam3slim.checkpoints.loading import check_architecture
from sam3slim.checkpoints.readers import read
from sam3slim.errors import UserError
from sam3slim.models import part_of
from sam3slim.results.record import plain
from sam3slim.results.recording import OUTPUT_KEYS, is_first_process
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import LoraSpec, OptimSpec


def resume_path(spec: TrainSpec, output_dir: Path) -> str | None:
    """The checkpoint that ``spec.resume`` means, or None to begin.

    Raises:
        UserError: there is none, or one that this run cannot go on from: no checkpoint of a training, another
            architecture or vocabulary, other parameters to train; a run to begin in the folder of an earlier one.
    """
    checkpoints = output_dir / "checkpoints"
    if spec.resume is None:
        # Another process of this run may have come as far as saving.
        if is_first_process() and checkpoints.exists():
            raise UserError(
                f"{checkpoints} is an earlier run's: go on with resume=auto, choose another hydra.run.dir, or remove it"
            )
        return None
    path = checkpoints / "last.ckpt" if spec.resume == "auto" else Path(spec.resume)
    if not path.is_file():
        if spec.resume == "auto":
            return None
        raise UserError(f"resume={path} is not a file; give a checkpoint (…/checkpoints/last.ckpt), or auto")
    raw = read(locate(path))
    if spec.trainer["max_steps"] == 0:
        raise UserError(
            f"trainer.max_steps=0 trains nothing, and {path} is a training to go on with; give more steps, or write "
            "its weights as they are: init=checkpoint init.checkpoint=… in another hydra.run.dir"
        )
    if raw.kind != "lightning":
        raise UserError(
            f"resume={path} holds weights ({raw.kind}), no training to go on with; give a checkpoint of a run "
            "(…/checkpoints/last.ckpt), or start from the weights with init=checkpoint init.checkpoint=…"
        )
    if 0 < spec.trainer["max_steps"] < (step := _saved(path).get("global_step", 0)):
        raise UserError(
            f"trainer.max_steps={spec.trainer['max_steps']} is less than the {step} steps that {path} has taken; give "
            f"{step} or more, or measure it as it is: evaluate.py checkpoint={path}"
        )
    wanted = spec.model
    if spec.init.depth == "greedy" and raw.spec.vit.depth == wanted.vit.depth:  # it has found out which are global
        wanted = replace(wanted, vit=replace(wanted.vit, global_attention_blocks=raw.spec.vit.global_blocks))
    check_architecture(raw, wanted)
    _check_trained_parts(path, spec.optim)
    return str(path)


def tell_differences(path: Path, config: Mapping[str, Any]) -> None:
    """Print in which keys a run goes on otherwise than it began: it may, and nobody should overlook it."""
    was, now = _leaves(_saved_config(path)), _leaves(plain(config))
    differ = [
        f"{key} {was.get(key)} → {now.get(key)}" for key in sorted({**was, **now}) if was.get(key) != now.get(key)
    ]
    if differ:
        print(f"going on from {path} with other settings than it was saved with: {', '.join(differ)}")


def check_trained_parameters(path: Path, model: nn.Module, unused: Collection[str]) -> None:
    """The optimiser's state is of the parameters that a loss reaches, and these must be the same again.

    Raises:
        UserError: they are others, because the data have masks or boxes that they had not, or the losses changed.
    """
    content = _saved(path)
    saved = content["hyper_parameters"].get("unused")  # missing in older ones, which trained these all the same
    number = sum(len(group["params"]) for state in content["optimizer_states"] for group in state["param_groups"])
    here = sum(parameter.requires_grad for parameter in model.parameters())
    others = set(unused) ^ set(saved or ())
    if number == here and (saved is None or not others):
        return
    parts = ", ".join(sorted({part_of(name) for name in others}))
    raise UserError(
        f"{path} has the optimiser state of {number} parameters, and {here} train here (they differ in {parts}): the "
        "data have gained or lost masks, data.boxes.share went to or from 0, or a loss's weight did; resume with the "
        "same, or start a new run from its weights (init=checkpoint init.checkpoint=…)"
    )


def _saved(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _saved_config(path: Path) -> dict[str, Any]:
    return _saved(path)["hyper_parameters"].get("config") or {}


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value, without keys that say where results go."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key not in OUTPUT_KEYS and (prefix or key != "resume"):
            found |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _check_trained_parts(path: Path, optim: OptimSpec) -> None:
    """The optimiser's state is of groups of parameters, and these must be the same again."""
    saved = _saved_config(path).get("optim", {})
    layered = 1.0 not in (saved.get("layer_decay", 1.0), optim.layer_decay)
    for key, was, now, matters in (
        ("kind", saved.get("kind", "adamw"), optim.kind, True),
        ("freeze", sorted(saved.get("freeze", ())), sorted(optim.freeze), True),
        ("layer_decay", saved.get("layer_decay", 1.0), optim.layer_decay, not layered),
        ("layer_decay_start", saved.get("layer_decay_start", 0), optim.layer_decay_start, layered),
        ("layer_decay_exempt", sorted(saved.get("layer_decay_exempt", ())), sorted(optim.layer_decay_exempt), layered),
        (
            "lr_geometry",
            saved.get("lr_geometry"),
            optim.lr_geometry,
            None in (saved.get("lr_geometry"), optim.lr_geometry),
        ),
        ("lora", _as_lora(saved.get("lora")), optim.lora, True),
        ("decay_too", sorted(saved.get("decay_too", ())), sorted(optim.decay_too), True),
    ):
        if was != now and matters:
            raise UserError(
                f"optim.{key} is {was} in {path} and {now} here, for which its optimiser state does not fit; resume "
                "with the same, or start a new run from its weights (init=checkpoint init.checkpoint=…)"
            )


def _as_lora(saved: Any) -> LoraSpec | None:
    return None if saved is None else spec_from_dict(LoraSpec, saved, "optim.lora")
