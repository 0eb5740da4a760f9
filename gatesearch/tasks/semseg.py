"""Semantic segmentation."""

from gatesearch.tasks.class_map import ClassMap


class Semseg(ClassMap):
    """Cross entropy over labelled pixels; mean intersection over union in percent.

    Target: (B, H, W) uint8 class index, 255 = ignore. Further figures: the IoU of each class.
    """
