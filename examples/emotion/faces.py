"""Public faces to calibrate and to measure with, all shipped inside scikit-image: nothing is downloaded.

100 faces of `skimage.data.lfw_subset` (25×25 pixels, cut out of Labeled Faces in the Wild) scaled up, and the photograph of
`device.py` shifted, mirrored, brightened, darkened and blurred. Even ones calibrate, odd ones measure: nobody is measured on what
calibrated.
"""

import device
import numpy as np
import numpy.typing as npt
from device import Tensor

FACES_IN_LFW = 100  # the rest of the subset are pictures without one


def everyone() -> Tensor:
    """N, 64, 64, 1 in [-1, 1]; the same order every time."""
    return np.concatenate([_lfw(), _astronaut()])


def calibration() -> Tensor:
    return everyone()[0::2]


def measurement() -> Tensor:
    return everyone()[1::2]


def photograph() -> Tensor:
    """The photograph of `device.py` as it asks with it: 1, 64, 64, 1."""
    return device.preprocess(*_photograph())


def _photograph() -> tuple[device.Image, device.Box]:
    from skimage.io import imread

    image = np.ascontiguousarray(imread(device.PHOTOGRAPH)[..., :3])
    return image, device.find_face(image)


def _lfw() -> Tensor:
    from skimage.data import lfw_subset

    grey = np.asarray(lfw_subset()[:FACES_IN_LFW], np.float64) * 255.0  # type: ignore[no-untyped-call]
    return np.concatenate([_scaled(face) for face in grey])


def _astronaut() -> Tensor:
    image, box = _photograph()
    shifted = [
        device.preprocess(image, device.Box(box.row + down, box.column + right, box.height + larger, box.width + larger))
        for down in (-6, 0, 6)
        for right in (-6, 0, 6)
        for larger in (-8, 0, 8)
    ]
    faces = np.concatenate(shifted)
    brightened = np.clip(faces + 0.25, -1, 1)
    darkened = np.clip(faces * 0.7 - 0.2, -1, 1)
    blurred = (faces + np.roll(faces, 1, axis=1) + np.roll(faces, 1, axis=2)) / 3
    return np.concatenate([faces, faces[:, :, ::-1], brightened, darkened, blurred]).astype(np.float32)


def _scaled(grey: npt.NDArray[np.float64]) -> Tensor:
    three = np.repeat(np.rint(grey)[..., None], 3, axis=2).astype(np.uint8)
    return device.preprocess(three, device.Box(0, 0, *three.shape[:2]))
