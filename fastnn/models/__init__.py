"""Networks of the courses and their papers, small and readable, built from :mod:`fastnn.nn`.

Every builder and class takes ``layers``, the namespace of its layers: ``fastnn.nn`` unless told otherwise, and with
``torch.nn`` the same network of torch's layers, with the same ``state_dict``. Weights are random.
"""

from __future__ import annotations

from fastnn.models.captioner import Captioner
from fastnn.models.classifiers import alexnet, digits, lenet5, vgg16
from fastnn.models.deconvnet import DeconvNet
from fastnn.models.googlenet import GoogLeNet
from fastnn.models.mobilenet import mobilenet_v2
from fastnn.models.resnet import resnet18, resnet50
from fastnn.models.sequence_to_sequence import SequenceToSequence
from fastnn.models.video import FrameLabeller

__all__ = [
    "Captioner",
    "DeconvNet",
    "FrameLabeller",
    "GoogLeNet",
    "SequenceToSequence",
    "alexnet",
    "digits",
    "lenet5",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "vgg16",
]
