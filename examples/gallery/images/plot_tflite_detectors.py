"""
Google's sparse detectors
=========================

MediaPipe ships TFLite files whose convolutions were pruned: two thirds of the weights of a face detector and of a pose
detector are zero. They find faces and people in photographs. ``fs.compile`` reads such a file, sparse weights included,
and runs it on this library's kernels. What comes out are numbers for a grid of anchors, which a few lines of NumPy turn
into boxes.

The networks: Bazarevsky et al., BlazeFace: sub-millisecond neural face detection on mobile GPUs, 2019; Bazarevsky et
al., BlazePose: on-device real-time body pose tracking, 2020. Version 0.10.21 of the package ``mediapipe`` is the last
that has the files: ``pip download --no-deps mediapipe==0.10.21``, unpack the wheel, and set ``FASTSPARSE_MEDIAPIPE`` to
its folder ``mediapipe``. Reading them needs the extra ``tflite``. The photographs are ``astronaut`` (NASA) and
``camera`` of scikit-image.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from skimage import data, transform

import fastsparse as fs

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
modules = Path(os.environ["FASTSPARSE_MEDIAPIPE"]) / "modules"

# %%
# Anchors are the centres of the cells of some grids, each cell several times. The numbers of a box are in pixels of the
# network's input, from its anchor's centre.


def anchors(side, grids):
    """(n, 2) centres (x, y) in [0, 1]. grids : (stride, boxes of a cell)."""
    centres = []
    for stride, boxes in grids:
        ticks = (np.arange(side // stride) + 0.5) * stride / side
        y, x = np.meshgrid(ticks, ticks, indexing="ij")
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), boxes, axis=0))
    return np.concatenate(centres)


DETECTORS = {
    "face": ("face_detection/face_detection_full_range_sparse.tflite", 192, ((4, 1),)),
    "person": ("pose_detection/pose_detection.tflite", 224, ((8, 2), (16, 2), (32, 6))),
}


def detect(engine, photograph, side, grids):
    """Best detection: its probability, box (left, top, width, height) and points (x, y), in pixels."""
    image = transform.resize(photograph, (side, side), anti_aliasing=True).astype(np.float32)
    outputs = engine.run([2 * image[None] - 1])
    numbers, scores = sorted(outputs, key=lambda output: -output.shape[-1])
    best = int(scores[0, :, 0].argmax())
    pairs = numbers[0, best].reshape(-1, 2) / side
    centre, size = pairs[0] + anchors(side, grids)[best], pairs[1]
    points = pairs[2:] + anchors(side, grids)[best]
    scale = np.array(photograph.shape[1::-1])
    return (
        1 / (1 + np.exp(-scores[0, best, 0])),
        np.concatenate([centre - size / 2, size]) * np.tile(scale, 2),
        points * scale,
    )


# %%
# Both photographs are square, so that they are only made smaller. Times are medians of single images. The person's
# points are the middle of the hips and of the shoulders and what the size of the body follows from: a circle around the
# hips.

PHOTOGRAPHS = {"face": data.astronaut(), "person": np.stack([data.camera()] * 3, axis=2)}
figure, panels = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
found = {}
for axes, (name, (file, side, grids)) in zip(panels, DETECTORS.items()):
    engine = fs.compile(modules / file, tune=not SMALL)
    chance, box, points = found[name] = detect(engine, PHOTOGRAPHS[name], side, grids)
    print(f"{name}: probability {chance:.2f}; {engine.benchmark(seconds=0.1 if SMALL else 2)}")
    axes.imshow(PHOTOGRAPHS[name])
    axes.add_patch(plt.Rectangle(box[:2], *box[2:], fill=False, color="tab:orange", linewidth=2))
    if name == "person":
        radius = np.linalg.norm(points[1] - points[0])
        axes.add_patch(plt.Circle(points[0], radius, fill=False, color="tab:cyan", linewidth=2))
    axes.scatter(*points.T, color="tab:cyan", s=18)
    axes.set(title=f"{name}: probability {chance:.2f}", xlim=(0, 511), ylim=(511, 0))
    axes.set_axis_off()
plt.show()

# %%
# The face must be where scikit-image's cascade of local binary patterns finds one on this photograph, too.

left, top, width, height = found["face"][1]
known = np.array([172.0, 65.0, 106.0, 106.0])
shared = np.minimum((left + width, top + height), known[:2] + known[2:]) - np.maximum((left, top), known[:2])
both = np.prod(np.maximum(shared, 0))
agreement = float(both / (width * height + known[2] * known[3] - both))
result = {
    "claim": "the sparse detector's box is around the face",
    "measured": agreement,
    "baseline": 0.5,
    "unit": "intersection over union with a known box",
    "holds": agreement > 0.5,
}
print(result)
