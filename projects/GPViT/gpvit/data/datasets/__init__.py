"""Datasets: custom datasets in several formats as records of Detectron2."""
