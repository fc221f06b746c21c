"""sam3slim: make SAM 3 small, and prove what each step costs in mAP."""
