from .coco_evaluation import COCOEvaluator
from .semantic_evaluation import SemanticEvaluator

__all__ = ["COCOEvaluator", "SemanticEvaluator"]
