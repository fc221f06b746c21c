import sys

from sam3slim.cli import main

sys.exit(main())
