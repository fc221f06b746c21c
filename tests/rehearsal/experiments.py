"""The experiments of ``conf/experiment``, composed as shipped and made small enough to rehearse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3slim.launch.compose import compose_model, compose_plain, conf_dir
from tests.rehearsal.running import SHAPES, watch
from tests.small import tiny_spec

NAMES = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
STEPS = 3
USERS = "(the user's)"  # stands for what only the user knows
# What the experiment inherits from, by its init.checkpoint.
FAMILIES = {USERS: "full", "assets/nano": "nano", "outputs/photo_frozen": "photo", "outputs/photo_reference": "photo"}
# A size that the experiment cuts is smaller than the teacher's here, too.
CUT: dict[str, Any] = {
    "vit.embed_dim": 16, "vit.num_heads": 1, "vit.mlp_ratio": 1.5, "vit.depth": 3, "text.width": 16,
    "text.num_heads": 1, "text.layers": 1, "encoder.num_layers": 1, "decoder.num_layers": 1, "ffn_dim": 16,
}  # fmt: skip
# Cheap at any size, or no size at all: as shipped.
KEPT = ("name", "geometry.roi_size", "dropout", "attention_dropout", "ffn_dropout", "vit.drop_path")


def rehearsal_of(name: str, root: Path) -> dict[str, Any]:
    """The experiment's configuration for ``root / name``: its own but for sizes, steps, files and the accelerator."""
    found = compose_plain("train", [f"experiment={name}", "logger=none"], root / name, missing=USERS)
    init, trainer, schedule, data = (found[group] for group in ("init", "trainer", "schedule", "data"))
    whole = found["model"]
    if init["vision"]:  # whose tower the model has, and nothing of it is cut
        init["vision"] = str(root / "vit")
    elif init["checkpoint"]:
        whole = compose_model([f"model={FAMILIES[init['checkpoint']]}"]).to_dict()
    found["model"] = _tiny(found["model"], whole)
    for group in (init, found["distill"]):
        for key in ("checkpoint", "teacher"):
            if group.get(key):
                group[key] = str(root / "teacher")
    data |= {"root": str(root / "shapes"), "batch_size": 2, "eval_batch_size": 2, "num_workers": 0}
    if data.get("sets"):
        data |= {"sets": {"one": {"root": str(root / "shapes")}}, "validate": None, "root": None}
    if data.get("shapes"):
        data["shapes"] |= vars(SHAPES)
    for key in ("warmup_steps", "cooldown_steps"):
        schedule[key] = min(schedule[key], 1)
    trainer |= {
        "accelerator": "cpu", "devices": 2 if trainer["devices"] == -1 else trainer["devices"],
        "max_steps": STEPS, "val_check_interval": STEPS, "log_every_n_steps": 1, "enable_progress_bar": False,
    }  # fmt: skip
    found["callbacks"]["watch"] = watch(found["optim"]["clip"])
    return found


def _tiny(model: dict[str, Any], whole: dict[str, Any], tiny: dict[str, Any] | None = None, at: str = "") -> Any:
    """``tests.small``'s sizes in place of ``model``'s, smaller ones for those that differ from ``whole``'s."""
    tiny = tiny_spec().to_dict() if tiny is None else tiny
    found = {}
    for key, value in model.items():
        path = f"{at}{key}"
        if isinstance(value, dict) and tiny[key] is not None:
            found[key] = _tiny(value, whole[key], tiny[key], f"{path}.")
        elif path in KEPT:
            found[key] = value
        else:
            found[key] = tiny[key] if value == whole[key] else CUT[path]
    return found
