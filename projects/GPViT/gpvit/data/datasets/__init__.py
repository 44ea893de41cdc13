"""Datasets: what people have, to Detectron2's records."""
