"""The page's own components. Pictures travel as data URIs and are never kept on the server.

Each component is a Python class, which checks what a client sends, and a script beside it, which draws it.
"""

from demo.components.animation import Animation, AnimationView
from demo.components.compare import Compare
from demo.components.face_grid import FaceGrid, Selection
from demo.components.face_input import FaceInput, MaskedFaceInput
from demo.components.mask_editor import Masked, MaskEditor
from demo.components.sliders import Sliders

__all__ = [
    "Animation",
    "AnimationView",
    "Compare",
    "FaceGrid",
    "FaceInput",
    "MaskEditor",
    "Masked",
    "MaskedFaceInput",
    "Selection",
    "Sliders",
]
