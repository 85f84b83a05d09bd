"""Convolution by every library: NCHW in, NCHW out, `out` preallocated where the library takes one.

SciPy and NumPy lower each image by im2col (`sliding_window_view`, one copy into a preallocated buffer, one product):
image by image the buffer stays in cache and the product lands in NCHW without a transposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bench.baselines import OURS, Baseline, Call, onnx_session, torch_on
from bench.workloads import Conv
from fastsparse.onnx.writer import GraphWriter


def _fastsparse(case: Conv, threads: int) -> Call:
    import fastsparse as fs

    weight, x, out = fs.csr(case.weight), case.x, np.empty(case.out_shape, np.float32)
    return lambda: fs.conv2d(
        x, weight, kernel_size=case.kernel, stride=case.stride, padding=case.padding, out=out
    )  # fmt: skip


def _scipy(case: Conv, threads: int) -> Call:
    weight = case.weight

    def multiply(columns: np.ndarray, out: np.ndarray) -> None:
        out[...] = weight @ columns

    return _by_im2col(case, multiply)


def _numpy(case: Conv, threads: int) -> Call:
    weight = case.weight.toarray()

    def multiply(columns: np.ndarray, out: np.ndarray) -> None:
        np.matmul(weight, columns, out=out)

    return _by_im2col(case, multiply)


def _by_im2col(case: Conv, multiply: Callable[[np.ndarray, np.ndarray], None]) -> Call:
    p, side = case.padding, case.side
    out = np.empty((case.batch, case.out, case.out_side**2), np.float32)
    if case.kernel == 1 and case.stride == 1:  # the image is its own im2col

        def pointwise() -> np.ndarray:
            for image, result in zip(case.x.reshape(case.batch, case.channels, -1), out):
                multiply(image, result)
            return out.reshape(case.out_shape)

        return pointwise
    padded = np.zeros((case.channels, side + 2 * p, side + 2 * p), np.float32)
    inside = padded[:, p : p + side, p : p + side]
    windows = sliding_window_view(padded, (case.kernel, case.kernel), axis=(1, 2))[:, :: case.stride, :: case.stride]
    windows = windows.transpose(0, 3, 4, 1, 2)
    buffer = np.empty(windows.shape, np.float32)
    columns = buffer.reshape(case.weight.shape[1], -1)

    def convolve() -> np.ndarray:
        for image, result in zip(case.x, out):
            np.copyto(inside, image)
            np.copyto(buffer, windows)
            multiply(columns, result)
        return out.reshape(case.out_shape)

    return convolve


def _torch_dense(case: Conv, threads: int) -> Call:
    torch = torch_on(threads)

    weight = torch.from_numpy(dense_oihw(case))
    x = torch.from_numpy(case.x)

    def convolve() -> np.ndarray:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(x, weight, stride=case.stride, padding=case.padding).numpy()

    return convolve


def _torch_channels_last(case: Conv, threads: int) -> Call:
    return _torch_resident(case, threads, lambda torch, tensor: tensor.to(memory_format=torch.channels_last))


def _torch_mkldnn(case: Conv, threads: int) -> Call:
    return _torch_resident(case, threads, lambda torch, tensor: tensor.to_mkldnn())


def _torch_resident(case: Conv, threads: int, to_layout: Callable[[Any, Any], Any]) -> Call:
    """Input, weights and output in a layout of torch's own."""
    torch = torch_on(threads)
    weight, x = (to_layout(torch, torch.from_numpy(array)) for array in (dense_oihw(case), case.x))

    def convolve() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(x, weight, stride=case.stride, padding=case.padding)

    convolve.result = lambda: convolve().to_dense().contiguous().numpy()  # type: ignore[attr-defined]
    return convolve


def _onnxruntime(case: Conv, threads: int) -> Call:
    writer = GraphWriter()
    writer.node("Conv", "x", dense_oihw(case), output="y", strides=[case.stride] * 2, pads=[case.padding] * 4)
    x, y = writer.value("x", case.x.shape, "float32"), writer.value("y", case.out_shape, "float32")
    session = onnx_session(writer.model([x], [y]).SerializeToString(), threads)
    binding, out = session.io_binding(), np.empty(case.out_shape, np.float32)
    binding.bind_cpu_input("x", case.x)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def convolve() -> np.ndarray:
        session.run_with_iobinding(binding)
        return out

    return convolve


def dense_oihw(case: Conv) -> np.ndarray:
    """The weights as (out, channels, kernel, kernel), zeros included."""
    return case.weight.toarray().reshape(case.out, case.channels, case.kernel, case.kernel)


PLAIN = [
    Baseline(OURS, _fastsparse),
    Baseline("scipy im2col", _scipy),
    Baseline("numpy im2col", _numpy),
    Baseline("torch dense", _torch_dense, needs=("torch",)),
    Baseline("onnxruntime dense", _onnxruntime, needs=("onnxruntime", "onnx")),
]

# For real layers: dense baselines in the layout each likes best.
LAYERS = [
    PLAIN[0],
    PLAIN[3],
    Baseline("torch channels_last", _torch_channels_last, needs=("torch",)),
    Baseline("torch mkldnn", _torch_mkldnn, needs=("torch",)),
    PLAIN[4],
]
SMALL = [PLAIN[0], PLAIN[3], PLAIN[4]]
