"""Write smaller artifacts of a checkpoint and measure them: ``python compress.py checkpoint=PATH``."""

from sam3slim.runs import main

if __name__ == "__main__":
    main("compress")
