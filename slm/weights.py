"""The one place that loads weights which nobody has checked: safetensors only, of the sizes that their config.json says.

A config.json is compared with what its weights' header says before memory is taken: a model is built without memory (on
torch's meta device) first. Weights that are not finite are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from slm.errors import TresseError
from slm.schema import FileName, parse, read_json, read_model_config, regular

WEIGHTS = "model.safetensors"
Network = TypeVar("Network", bound=nn.Module)
STEP = ".step"
"""Ends the names of the steps of int8 weights."""
MOST = {torch.int8: 127, torch.uint8: 31}
"""Steps of a row's largest weight, by how it is saved: as int8, or in six bits."""
ELSEWHERE = ("quantization_config", "transformers_weights", "attn_implementation", "_attn_implementation")
"""Keys of a config.json that make transformers read or fetch something else; the project's own models have none."""
SPARE = 10_000_000
"""Weights that a model may have beyond twice those of its files: transformers makes up a few that are not stored."""


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a safetensors file, from its header alone. Raises OSError where it is no file, and
    SafetensorError where it is damaged."""
    with safe_open(str(regular(path)), "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def build(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """The module that `make` makes, with the weights in a safetensors file, which may be as `narrow` makes them.

    Raises ValueError where these have other names or shapes, or are not finite; OSError, SafetensorError as `shapes`.
    """
    stored = {name: shape for name, shape in shapes(path).items() if not name.endswith(STEP)}
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    different = [name for name in stored.keys() | expected.keys() if not _fits(stored.get(name), expected.get(name))]
    if different:
        raise ValueError(f"{path} does not fit its config.json ({min(different)})")
    module, weights = make(), load_file(str(path))
    check_finite(weights.values(), path)
    weights = widen(weights, expected)
    if any(tuple(tensor.shape) != expected[name] for name, tensor in weights.items()):
        raise ValueError(f"{path} does not fit its config.json")
    module.load_state_dict(weights)
    return module


def _fits(stored: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> bool:
    """Whether a tensor is of the shape that is expected, or may be that of its rows in six bits."""
    if stored is None or expected is None:
        return False
    return stored == expected or (len(expected) > 1 and stored == (expected[0], math.prod(expected[1:]) * 3 // 4))


def narrow(state: Mapping[str, Tensor], matrices: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """A state as it is saved: as float16 where that changes nothing, else as float32.

    matrices: torch.int8 saves what has two dimensions or more as int8, with a step for each row (its largest weight is 127
    steps), where that changes nothing: see `rounded`. torch.uint8 saves it in six bits a weight (31 steps), four weights in
    three bytes, uint8 [rows, 3 n / 4], where rows are of a multiple of four.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        kind = _kind(tensor, matrices)
        if kind is not None:
            steps = _steps(tensor, MOST[kind])
            numbers = (tensor.float() / steps).round()
            if torch.equal(numbers * steps, tensor.float()):
                whole = numbers.to(torch.int8)
                tensors |= {name: whole if kind == torch.int8 else _packed(whole.flatten(1)), name + STEP: steps}
                continue
        tensors[name] = tensor.half() if torch.equal(tensor.half().to(tensor.dtype), tensor) else tensor.float()
    return tensors


def widen(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state from what `narrow` made of it. shapes: of what was saved in six bits. Raises ValueError for numbers
    without the steps of their rows."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(STEP):
            continue
        if tensor.dtype in MOST:
            if tensor.dtype == torch.uint8:
                tensor = _unpacked(tensor).reshape(shapes[name])
            steps = tensors.get(name + STEP)
            if steps is None or steps.shape != _steps(tensor.float(), 1).shape:
                raise ValueError(f"{name} is int8 and has no steps")
            tensor = tensor.float() * steps.float()
        state[name] = tensor
    return state


@torch.no_grad()
def rounded(module: Network, matrices: torch.dtype = torch.float16) -> Network:
    """The module, in float32, with its weights rounded to those that `narrow` can save: changed in place."""
    module.half().float()
    for tensor in module.state_dict().values():
        kind = _kind(tensor, matrices)
        if kind is not None:
            steps = _steps(tensor, MOST[kind])
            tensor.copy_((tensor / steps).round() * steps)
    return module


def _kind(tensor: Tensor, matrices: torch.dtype) -> torch.dtype | None:
    """How a tensor is saved: as int8, as six bits (torch.uint8), or, None, as it is."""
    if matrices not in MOST or tensor.dim() < 2:
        return None
    return torch.int8 if math.prod(tensor.shape[1:]) % 4 else matrices


def _steps(matrix: Tensor, most: int) -> Tensor:
    """Size of a row's steps, of which its largest weight is `most`: float32 [rows, 1, ...], of bfloat16's precision, so that
    all multiples are exact: a rounded row has the steps that it was rounded with."""
    largest = matrix.float().abs().amax(dim=tuple(range(1, matrix.dim())), keepdim=True)
    return (largest.clamp(min=1e-8) / most).bfloat16().float()


def _packed(numbers_RN: Tensor) -> Tensor:
    """Numbers from -32 to 31, int8 [R, N] -> six bits each, uint8 [R, 3 N / 4]; N: a multiple of four."""
    four = (numbers_RN.to(torch.int32) + 32).unflatten(1, (-1, 4))
    joined = four[..., 0] | four[..., 1] << 6 | four[..., 2] << 12 | four[..., 3] << 18
    return torch.stack([joined >> shift & 255 for shift in (0, 8, 16)], 2).flatten(1).to(torch.uint8)


def _unpacked(bytes_RN: Tensor) -> Tensor:
    """What `_packed` was given."""
    three = bytes_RN.to(torch.int32).unflatten(1, (-1, 3))
    joined = three[..., 0] | three[..., 1] << 8 | three[..., 2] << 16
    return (torch.stack([joined >> shift & 63 for shift in (0, 6, 12, 18)], 2).flatten(1) - 32).to(torch.int8)


def check_finite(tensors: Iterable[Tensor], source: str | Path) -> None:
    """Raises ValueError where a weight is NaN or infinite."""
    if any(tensor.is_floating_point() and not torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(f"{source} has weights that are not finite")


def load_pretrained(model_class: Any, source: str | Path, **options: Any) -> Any:
    """A transformers model of a folder or hub id, from safetensors only; none of its code is run. options: of transformers'
    `from_pretrained`.

    Raises TresseError for a folder whose config.json cannot be true; otherwise whatever transformers raises, and ValueError
    for weights that are not finite.
    """
    with _quietly():
        if Path(source).is_dir():
            _check_folder(model_class, Path(source))
        loaded = model_class.from_pretrained(str(source), trust_remote_code=False, use_safetensors=True, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    check_finite((tensor for part in (model.parameters(), model.buffers()) for tensor in part), source)
    return loaded


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own pages of warnings: what is wrong is one line of ours."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_folder(model_class: Any, folder: Path) -> None:
    """Raises TresseError where config.json asks for something outside the folder, or for more weights than there are."""
    from transformers import AutoConfig

    values = read_model_config(folder)
    for key in ELSEWHERE:
        if values.get(key) is not None:
            raise TresseError(f"the model in {folder} wants something else to be loaded ({key}): it is not loaded")
    if (folder / "adapter_config.json").exists():
        raise TresseError(f"the model in {folder} is an adapter of another one: merge the two, and give that model")
    stored = sum(math.prod(shape) for file in _files(folder) for shape in shapes(file).values())
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    make = getattr(model_class, "from_config", None) or model_class
    with torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in make(config).parameters())
    if wanted > 2 * stored + SPARE:
        raise TresseError(f"the model in {folder} lacks most of its weights: restore its files")


def _files(folder: Path) -> list[Path]:
    """The files of a model's weights: one, or those that an index names."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    path = folder / f"{WEIGHTS}.index.json"
    if not path.exists():
        raise OSError(f"there is no file {folder / WEIGHTS}")
    index = parse(dict[str, Any], read_json(path), path)
    return [folder / name for name in sorted(set(parse(dict[str, FileName], index.get("weight_map"), path).values()))]
