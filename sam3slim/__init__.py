"""sam3slim: make SAM 3 small, and prove what each step costs in mAP."""

import logging
from typing import Any

# Importing torchao under recent PyTorch warns twice about its own enums; nothing a user can do about.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
# Five lines of progress for every metric of every validation.
logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``sam3slim.load``, imported when asked for: torch and transformers take seconds."""
    if name == "load":
        from sam3slim.checkpoints import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
