"""Kokoro's network: by OpenVINO where the package `openvino` is installed, by ONNX Runtime elsewhere.

Where the processor multiplies bfloat16, OpenVINO runs the decoder in it, almost twice as fast. All that leads to the
harmonic source (text, durations, pitch, and the sines themselves) stays in float32, as a model of its own: phases of
thousands of radians do not fit in bfloat16, and the voice would be hoarse (DNSMOS 1.8 for 3.3).

The network takes in the source's spectrum as magnitudes and phases. Where the imaginary part is zero and the real part
negative, the phase is pi, as in its training; the exported graph says -pi (DNSMOS 3.24 for 3.33), which OpenVINO, whose
zeros are exact, would follow. Comparing with "at least 0" for "above 0" mends it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slm.errors import TresseError

SOURCE = "noise_convs"
"""Part of the names of the convolutions that take in the harmonic source."""


class Runner(Protocol):
    """The network."""

    def __call__(
        self, tokens: np.ndarray, style: np.ndarray, speed: float, pitch: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """tokens int64 [N], style float32 [256], speed and pitch scale -> waveform [samples], durations [N] in frames."""
        ...


@functools.cache
def runtime(speaker: str) -> str:
    """What runs the model here: package, version and precision. Raises TresseError where nothing does."""
    try:
        return f"openvino {version('openvino')} {_precision()}"
    except PackageNotFoundError:
        pass
    try:
        return f"onnxruntime {version('onnxruntime')} f32"
    except PackageNotFoundError:
        raise TresseError(
            f"voice {speaker}: Kokoro needs the package openvino or onnxruntime: pip install one"
        ) from None


def _precision() -> str:
    import openvino

    core: Any = openvino.Core()
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


@functools.cache
def load_runner(folder: Path, kind: str | None = None) -> Runner:
    """The network on one thread: several processes speak at a time.

    kind: `openvino bf16`, `openvino f32` or `onnxruntime`; by default the fastest that is installed.
    """
    words = (kind or runtime("kokoro")).split()
    path = str(folder / "kokoro.onnx")
    return _onnx_runner(path) if words[0] == "onnxruntime" else _openvino_runner(path, words[-1])


def _openvino_runner(path: str, precision: str) -> Runner:
    import openvino

    core: Any = openvino.Core()

    def compiled(model: Any, precision: str) -> Any:
        # Lengths are ever new: kernels kept for them would only fill the memory. Pinned, every process takes the same core.
        settings = {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False, "CPU_RUNTIME_CACHE_CAPACITY": 0}
        return core.compile_model(model, "CPU", settings | {"INFERENCE_PRECISION_HINT": precision})

    early, late, names = split(core.read_model(path))
    source, decoder = compiled(early, "f32"), compiled(late, precision)

    def run(tokens: np.ndarray, style: np.ndarray, speed: float, pitch: float) -> tuple[np.ndarray, np.ndarray]:
        inputs = _inputs(tokens, style, speed, pitch)
        *between, durations = (np.array(output) for output in source(inputs).values())
        waveform = decoder([*between, *(inputs[name] for name in names)])[0]
        return np.array(waveform).reshape(-1), durations.reshape(-1)

    return run


def split(first: Any) -> tuple[Any, Any, list[str]]:
    """The network -> the model of the harmonic source and durations, the model of the rest, and the inputs
    of the network that the latter needs too, behind the outputs of the former.

    Raises TresseError where the network has no harmonic source.
    """
    import openvino

    second = first.clone()
    nodes = {node.get_friendly_name(): node for node in first.get_ordered_ops()}
    takers = [
        node
        for node in second.get_ordered_ops()
        if SOURCE in node.get_friendly_name() and "Conv" in node.get_type_name()
    ]
    if not takers:
        raise TresseError("kokoro.onnx has no harmonic source: give the model in float32, as kokoro.py describes it")
    early = {
        name
        for name, node in _ancestors(node.input_value(0) for node in takers).items()
        if node.get_type_name() not in ("Constant", "Parameter")
    }
    for name in early:
        _mend_phases(nodes[name])
    audio, durations = (output.get_node().input_value(0) for output in second.outputs)
    edges = {}
    for name, node in _ancestors([audio]).items():
        if name not in early:
            for value in node.input_values():
                if value.get_node().get_friendly_name() in early:
                    edges[value.get_node().get_friendly_name(), value.get_index()] = value
    last = durations.get_node().get_friendly_name(), durations.get_index()
    outputs = [nodes[name].output(index) for name, index in [*edges, last]]
    inputs = []
    for value in edges.values():
        inputs.append(openvino.opset13.parameter(value.get_partial_shape(), value.get_element_type()))
        value.replace(inputs[-1].output(0))
    audio = second.outputs[0].get_node().input_value(0)
    needed = _ancestors([audio])
    shared = [parameter for parameter in second.get_parameters() if parameter.get_friendly_name() in needed]
    late = openvino.Model([audio], [*inputs, *shared], "decoder")
    return openvino.Model(outputs, first.get_parameters(), "source"), late, [p.get_friendly_name() for p in shared]


def _mend_phases(node: Any) -> None:
    """The sign of an imaginary part of a spectrum, if that is what the node asks: 0 counts as positive."""
    import openvino

    if node.get_type_name() == "Greater":
        imaginary, zero = node.input_values()
        if any(earlier.get_type_name() == "STFT" for earlier in _ancestors([imaginary]).values()):
            node.output(0).replace(openvino.opset13.greater_equal(imaginary, zero).output(0))


def _ancestors(values: Iterable[Any]) -> dict[str, Any]:
    """All nodes that values are computed from, by name."""
    nodes: dict[str, Any] = {}
    left = [value.get_node() for value in values]
    while left:
        node = left.pop()
        if node.get_friendly_name() not in nodes:
            nodes[node.get_friendly_name()] = node
            left += [value.get_node() for value in node.input_values()]
    return nodes


def _onnx_runner(path: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # lengths are ever new: the arena would only grow
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(tokens: np.ndarray, style: np.ndarray, speed: float, pitch: float) -> tuple[np.ndarray, np.ndarray]:
        waveform, durations = session.run(None, _inputs(tokens, style, speed, pitch))
        return waveform.reshape(-1), durations.reshape(-1)

    return run


def _inputs(tokens: np.ndarray, style: np.ndarray, speed: float, pitch: float) -> dict[str, np.ndarray]:
    numbers = {"speed": np.array([speed], np.float32), "f0_scale": np.array([pitch], np.float32)}
    return {"tokens": tokens[None], "style": style[None], **numbers}
