from .classification_evaluation import ClassificationEvaluator
from .coco_evaluation import COCOEvaluator
from .semantic_evaluation import SemanticEvaluator

__all__ = ["COCOEvaluator", "ClassificationEvaluator", "SemanticEvaluator"]
