"""A cut model fitted to the full one: layer by layer, in closed form, without gradients."""

from sam3slim.slimming.fitting.whole import check_enough, fit_model

__all__ = ["check_enough", "fit_model"]
