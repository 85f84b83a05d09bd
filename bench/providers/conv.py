"""Convolution by everybody: NCHW in, NCHW out, `out` preallocated where the library takes one.

SciPy and NumPy lower each image by im2col (`sliding_window_view`, one copy into a preallocated buffer, one product):
image by image the buffer stays in cache and the product lands in NCHW without a transposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bench.providers import OURS, Call, Provider, resident, torch_on
from bench.workloads import Conv


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
    session = _onnx_session(case, threads)
    binding, out = session.io_binding(), np.empty(case.out_shape, np.float32)
    binding.bind_cpu_input("x", case.x)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def convolve() -> np.ndarray:
        session.run_with_iobinding(binding)
        return out

    return convolve


def _onnx_session(case: Conv, threads: int) -> Any:
    import onnx
    import onnxruntime

    weight = onnx.numpy_helper.from_array(dense_oihw(case), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=[case.stride] * 2, pads=[case.padding] * 4)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, case.x.shape)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, case.out_shape)
    graph = onnx.helper.make_graph([node], "conv", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def dense_oihw(case: Conv) -> np.ndarray:
    """The weights as (out, channels, kernel, kernel), zeros included."""
    return case.weight.toarray().reshape(case.out, case.channels, case.kernel, case.kernel)


PROVIDERS = [
    Provider(OURS, _fastsparse),
    Provider("scipy im2col", _scipy),
    Provider("numpy im2col", _numpy),
    Provider("torch dense", _torch_dense, needs=("torch",)),
    Provider("onnxruntime dense", _onnxruntime, needs=("onnxruntime", "onnx")),
]

PLANES = "fastsparse in planes"
_TORCH_DENSE, _ONNXRUNTIME = PROVIDERS[3:]

# For real layers: dense rivals in the layout each likes best, fastsparse on user arrays and in its own planes.
LAYER_PROVIDERS = [
    Provider(OURS, _fastsparse),
    Provider(PLANES, resident.convolution),
    _TORCH_DENSE,
    Provider("torch channels_last", _torch_channels_last, needs=("torch",)),
    Provider("torch mkldnn", _torch_mkldnn, needs=("torch",)),
    _ONNXRUNTIME,
]
