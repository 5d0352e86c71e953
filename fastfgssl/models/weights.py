"""Weights for a backbone, from a download cache or a file. Whatever the file holds, no code of it is run.

A file may be a state dict (of torchvision, timm, a data-parallel wrapper), a checkpoint with one in it (of fastfgssl,
timm or torchvision's scripts), or a .safetensors file.

Weights of a first convolution with another number of input channels than the network's (`model.in_channels`) are fitted
to it: 3 are summed into one, as timm does, and one is shared out to 3, a third each. Either gives the numbers on gray
images that it gave, if these are normalised by one mean and deviation in every channel.
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastfgssl.config.schema import ModelConfig
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import sha256_of

log = logging.getLogger(__name__)

KEY = "model.weights"
# what stands before the names of a backbone in larger networks, wrapped ones, and our own checkpoints
_PREFIXES = ("", "backbone.", "backbone.network.", "network.", "module.", "_orig_mod.")
# where a checkpoint keeps its state dict, ours and torchvision's first, then timm's, averaged weights before others
_ENTRIES = ("model", "state_dict_ema", "model_ema", "state_dict")
# of the hierarchical network; and what makes its tensors, and those of the backbone, as large as they are
_OF_HEADS = ("blocks.", "heads.")
_OF_HEADS_KEYS = "model.embedding_dim, model.block_dim or model.block"
_OF_BACKBONE_KEYS = "model.backbone, model.width, model.stem or model.in_channels"


def cached_download(url: str) -> Path:
    """The file that torch.hub keeps of `url`, downloaded if it is not there, with the checksum that its name carries.

    Raises `UserError` if it can be had neither way, or is damaged.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), _checksum_in_name(file), progress=False)
        except (OSError, RuntimeError) as error:  # torch's word for a download with another checksum is the latter
            raise UserError(
                f"{KEY} = imagenet: cannot download {url} ({error}); put it there as {file}, or use model.weights=none"
            ) from None
    require_checksum(file)
    return file


def require_checksum(file: Path) -> None:
    """Raises `UserError` unless the content of `file` has the SHA-256, or the start of it, that its name carries."""
    expected = _checksum_in_name(file)
    if expected is None:
        return
    with file_errors("read the weights", file):
        actual = sha256_of(file)
    if not actual.startswith(expected):
        raise UserError(
            f"{KEY} = imagenet: {file} is damaged or another file: its SHA-256 begins with {actual[: len(expected)]},"
            f" not {expected}; delete it, to have it downloaded again"
        )


def _checksum_in_name(file: Path) -> str | None:
    """torch.hub's name-11ad3fa6.pth, or a blob of the Hugging Face hub, whose whole name is the checksum."""
    found = re.search(r"-([0-9a-f]{8,64})\.|^([0-9a-f]{64})$", file.name)
    return found and (found[1] or found[2])


def load_weights(module: nn.Module, file: str | Path, config: ModelConfig, *, new: tuple[str, ...] = ()) -> None:
    """Fills `module`, the network that `config.backbone` names, from a file that may hold more than it.

    new: what names of tensors begin with that stay as they are. Raises `UserError` if the file lacks any of the other
    tensors, or holds one of another shape or type, with NaN, or with what is too large for the network's type.
    """
    source, found = f"{KEY} = {file}", read_state_dict(Path(file))
    wanted = {name: value for name, value in module.state_dict().items() if not name.startswith(new)}
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + name in found for name in wanted))
    state = {name: found[prefix + name] for name in wanted if prefix + name in found}
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        has = _what_it_has(found, wanted)
        if missing[0].startswith(_OF_HEADS):
            has = f" ({_OF_HEADS_KEYS} differ)"
        raise UserError(f"{source}: lacks {missing[0]} and {len(missing) - 1} more of {config.backbone}{has}")
    for name, value in state.items():
        _require_plain(value, wanted[name], f"{source}: {name}")
        require_finite({name: value}, source)
        state[name] = value = _fit_channels(value.to(wanted[name].dtype), wanted[name], f"{source}: {name}")
        if value.shape != wanted[name].shape:
            keys = _OF_HEADS_KEYS if name.startswith(_OF_HEADS) else _OF_BACKBONE_KEYS
            raise UserError(
                f"{source}: {name} is {list(value.shape)}, but {config.backbone} has {list(wanted[name].shape)}"
                f" ({keys} differ)"
            )
        if not value.isfinite().all():
            raise UserError(f"{source}: {name} holds values that are too large for {_type_name(value)}")
        if name.endswith("running_var") and (value < 0).any():
            raise UserError(f"{source}: {name} holds negative values, which are no variances; take another file")
    module.load_state_dict(state, strict=False)


def _what_it_has(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """What stands before the names that are wanted, in a file that has them under others; else its first names."""
    probe = next(iter(wanted))
    for prefix in sorted(name.removesuffix(probe) for name in found if name.endswith(probe)):
        if prefix and all(prefix + name in found for name in wanted if not name.endswith("num_batches_tracked")):
            return f", but has them all behind {prefix!r}: save them without it"
    return f"; it has {', '.join([*found][:3]) or 'nothing'}{', ...' if len(found) > 3 else ''}"


def _require_plain(value: Tensor, wanted: Tensor, source: str) -> None:
    """Raises `UserError` unless `value` has numbers of its own, one an element, of the kind that `wanted` holds."""
    real = value.is_floating_point() or not (wanted.is_floating_point() or value.is_complex())
    if value.is_meta:
        what = "a meta tensor, which has a shape and no values"
    elif value.is_quantized or value.is_nested or value.layout is not torch.strided:
        kind = "quantised" if value.is_quantized else "nested" if value.is_nested else "sparse"
        what = f"a {kind} tensor"
    elif not real:
        what = f"of type {_type_name(value)}"
    else:
        return
    raise UserError(f"{source} is {what}; save it as a dense tensor of {_type_name(wanted)}")


def _type_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _fit_channels(weight: Tensor, wanted: Tensor, name: str) -> Tensor:
    """A first convolution's weight [O, I, H, W] with as many input channels as `wanted` has; others as they are."""
    then, now = (tuple(one.shape) for one in (weight, wanted))
    if len(then) != 4 or (then[1], now[1]) not in ((3, 1), (1, 3)) or then[:1] + then[2:] != now[:1] + now[2:]:
        return weight
    log.info("%s: its %d input channels are fitted to %d (model.in_channels)", name, then[1], now[1])
    if now[1] == 1:
        return weight.sum(dim=1, keepdim=True)
    return (weight / 3).expand(-1, 3, -1, -1)


def load_start(
    network: nn.Module, backbone: nn.Module, file: str | Path, config: ModelConfig, *, new: tuple[str, ...]
) -> None:
    """Fills `network` from a file that has its backbone and heads, or else only its `backbone`.

    new: what names of tensors begin with that stay as they are. Raises `UserError` as `load_weights`.
    """
    state = read_state_dict(Path(file))
    if any(name in state for name in network.state_dict() if not name.startswith(("backbone.", *new))):
        load_weights(network, file, config, new=new)
    elif any(name.startswith("backbone.") for name in state):
        load_weights(backbone, file, config)
    else:  # of a library, whose names a network of timm keeps one level deeper
        load_weights(getattr(backbone, "network", backbone), file, config)


def require_finite(state: dict[str, Tensor], source: str) -> None:
    """Raises `UserError` that names `source` and the first tensor with NaN or an infinity."""
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{source}: {name} holds NaN or infinite values; take weights that were saved before them")


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a state-dict file, a checkpoint or a .safetensors file, on the CPU. `UserError` if it is none."""
    if not file.is_file():
        raise UserError(f"{KEY} = {file}: no such file; name a file with a state dict, imagenet, or none")
    try:
        content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"cannot read the weights {file}: {error.strerror or error}", errno=error.errno) from None
    except Exception:  # unpickler, zip reader and legacy reader raise what they happen to raise
        raise UserError(f"{KEY} = {file}: {_why_unreadable(file)}") from None
    if isinstance(content, dict):
        content = averaged_weights(content) or content
        content = next((content[entry] for entry in _ENTRIES if isinstance(content.get(entry), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{KEY} = {file}: must hold a state dict (names and tensors)")
    if other := [name for name in content if not isinstance(name, str)]:
        raise UserError(f"{KEY} = {file}: must hold a state dict (names and tensors); {other[0]!r} is no name")
    return content


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor] | None:
    """The average of the weights that a checkpoint of ours keeps beside them, if it does."""
    objective = checkpoint.get("objective")
    return objective.get("average") if isinstance(objective, dict) else None


def _why_unreadable(file: Path) -> str:
    with file_errors("read the weights", file), file.open("rb") as opened:
        head = opened.read(1024).lstrip().lower()
    if not head:
        return "is empty; download or copy it again"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page (of an error or a login, perhaps), not weights; download it again and look at it"
    if head.startswith(b"version https://git-lfs"):
        return "is not the weights but a Git LFS pointer to them; run `git lfs pull`"
    return "damaged (cut, perhaps), or not a file of tensors that can be read safely; download or copy it again"


def _read_torch(file: Path) -> object:
    with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments beside the weights in timm's
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{KEY} = {file}: needs the package safetensors: pip install safetensors") from None
    return load_file(file)
