"""Train or retrain a model: ``python train.py experiment=nano_slim``; see conf/train.yaml."""

from sam3slim.runs import main

if __name__ == "__main__":
    main("train")
