"""``python -m sam3slim``: the console script without one."""

import sys

from sam3slim.cli import main

sys.exit(main())
