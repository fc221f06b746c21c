"""COCO-format concepts: prompts, targets, batches, and the generated ``shapes`` set."""
