"""Measure a checkpoint's mAP: ``python evaluate.py checkpoint=PATH data=shapes``; see conf/evaluate.yaml."""

from sam3slim.runs import main

if __name__ == "__main__":
    main("evaluate")
