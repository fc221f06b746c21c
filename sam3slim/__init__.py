"""sam3slim: make SAM 3 small, and prove what each step costs in mAP."""

import logging

# Importing torchao under recent PyTorch warns twice about its own enums; nothing a user can do about.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

__version__ = "0.1.0"
