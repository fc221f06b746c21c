"""Batch prediction: phrases and boxes to many pictures.

from sam3slim.predict import Predictor
predictor = Predictor("assets/nano")
detections = predictor(["street.jpg"], ["yellow school bus", "dog"])
"""

from sam3slim.predict.job import Done, PredictSpec, predict_files
from sam3slim.predict.predictor import Predictor
from sam3slim.predict.prompts import BoxPrompt

__all__ = ["BoxPrompt", "Done", "PredictSpec", "Predictor", "predict_files"]
