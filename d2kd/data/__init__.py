"""Data: loaders that resume, images without labels, classes matched by name; importing it reads no dataset."""

from d2kd.data.class_maps import class_map
from d2kd.data.formats import register_labelled
from d2kd.data.loader import build_train_loader
from d2kd.data.mapping import SampleError
from d2kd.data.subset import subset
from d2kd.data.unlabeled import without_labels

__all__ = ["SampleError", "build_train_loader", "class_map", "register_labelled", "subset", "without_labels"]
