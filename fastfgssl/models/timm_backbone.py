"""Networks of timm as backbones, through timm's own `forward_intermediates`, under timm's names.

A network with feature maps at strides 8, 16 and 32 is tapped at the last map of each. A plain transformer, whose tokens
keep the stride of its patches (14 or 16, say), is tapped after one, two and three thirds of its blocks: each time the
tokens of the patches, after the network's final norm, as a map of that stride. Heads then look at three depths instead
of three scales, and the first update of a progressive step runs a third of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastfgssl.config.schema import ModelConfig
from fastfgssl.models.backbone import NUM_TAPS, Backbone
from fastfgssl.models.weights import KEY, load_weights, require_checksum, require_finite
from fastfgssl.runtime.errors import UserError, in_a_line, nearest

_STRIDES = (8, 16, 32)
# of timm's ways to let a network take images of any side, those that its kind may know
_ANY_SIDE = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True})


class _Taps(NamedTuple):
    """Which of a network's intermediate feature maps are tapped."""

    indices: list[int]
    strides: tuple[int, ...]
    normalised: bool  # by the network's final norm


class TimmBackbone(Backbone):
    """A timm network without its classifier; `network` holds it, under timm's names."""

    options: dict[str, Any]
    """Arguments of `timm.create_model` that the network was made with."""

    def __init__(self, network: Any, taps: _Taps, side: int, options: dict[str, Any]) -> None:
        """side: of images to find out with what the network runs; whatever it refuses raises what it raises."""
        super().__init__()
        self.options = options
        # lets go of the classifier, and of what stands behind the deepest tap
        self._indices = network.prune_intermediate_layers(taps.indices, prune_norm=not taps.normalised, prune_head=True)
        self._normalised = taps.normalised
        self.tap_strides = taps.strides
        self.network: Any = network
        self.tap_channels, self._trained = self._examine(side)

    def forward(self, images: Tensor, deepest_tap: int = NUM_TAPS - 1) -> list[Tensor]:
        return self.network.forward_intermediates(images, stop_early=True, **self.intermediates(deepest_tap))

    def intermediates(self, deepest_tap: int = NUM_TAPS - 1) -> dict[str, Any]:
        """Arguments of timm's `forward_intermediates` that make it give taps 0 to `deepest_tap`."""
        indices = self._indices[: deepest_tap + 1]
        return {"indices": indices, "norm": self._normalised, "output_fmt": "NCHW", "intermediates_only": True}

    def names_of(self, tap: int) -> set[str]:
        """Parameters that a tap depends on, under timm's names."""
        return {name.removeprefix("network.") for name in self._trained[tap]}

    def modules_of(self, taps: Iterable[int]) -> list[nn.Module]:
        # not simply what runs: networks of several branches (HRNet, CoaT) have parameters that one tap alone looks at
        names = set().union(*(self._trained[tap] for tap in taps))
        return list(_modules_with(self, {id(self.get_parameter(name)) for name in names}))

    def stage_of(self, parameter: str) -> int:
        return next((tap for tap, names in enumerate(self._trained) if parameter in names), 0)

    def _examine(self, side: int) -> tuple[tuple[int, ...], list[set[str]]]:
        """Channels of each tap, and the names of the parameters that each has gradients for."""
        try:
            return self._run_on(torch.device("meta"), side)
        except RuntimeError:  # some networks look at values as they run, which tensors without data have not
            return self._run_on(torch.device("cpu"), side)

    @torch.inference_mode(False)
    @torch.enable_grad()  # whoever loads a network to use it may have switched gradients off
    def _run_on(self, device: torch.device, side: int) -> tuple[tuple[int, ...], list[set[str]]]:
        everything = chain(self.named_parameters(), self.named_buffers())
        tensors = {name: value.detach().to(device) for name, value in everything}
        names = [name for name, _ in self.named_parameters()]
        parameters = [tensors[name].requires_grad_() for name in names]
        self.eval()  # draws nothing, moves no running average
        channels = self.options.get("in_chans", 3)
        taps = functional_call(self, tensors, (torch.zeros(2, channels, side, side, device=device),))
        self.train()
        trained = []
        for tap in taps:
            gradients = torch.autograd.grad(tap.sum(), parameters, allow_unused=True, retain_graph=True)
            trained.append({name for name, gradient in zip(names, gradients, strict=True) if gradient is not None})
        return tuple(tap.shape[1] for tap in taps), trained


def build_timm_backbone(config: ModelConfig, image_size: int | None = None) -> TimmBackbone:
    """The network that `config.backbone` (timm/NAME) names; see `build_backbone`."""
    timm, name = _import_timm(f"model.backbone = {config.backbone!r}"), config.backbone.removeprefix("timm/")
    _require_known(timm, name, f"model.backbone = {config.backbone!r}")
    if config.width != 1.0 or config.stem != "imagenet":
        raise UserError(
            f"model.width and model.stem change torchvision's ResNets alone: leave them out for {config.backbone}"
        )
    own_side = timm.get_pretrained_cfg(name).input_size[-1]
    side = image_size or own_side
    try:
        network, options = _create(timm, name, image_size, config.in_channels)
        _draw_nothing(network)
        backbone = TimmBackbone(network, _find_taps(network, config), side, options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.backbone = {config.backbone}: takes no images of {side} px ({in_a_line(error)}); its own size is"
            f" data.image_size={own_side}"
        ) from None
    if config.weights == "imagenet":
        _load_pretrained(timm, name, options, backbone)
    elif config.weights != "none":
        load_weights(backbone.network, config.weights, config)
    return backbone


def create_timm(name: str, **options: Any) -> nn.Module:
    """timm's network of that name, whole and without published weights: `timm.create_model`.

    Raises `UserError` if there is no timm, or no such network in it.
    """
    what = f"--format timm of {name}"
    timm = _import_timm(what)
    _require_known(timm, name, what)
    return timm.create_model(name, pretrained=False, **options)


def _import_timm(what: str) -> ModuleType:
    """what: the option that needs it."""
    try:
        import timm
    except ImportError:
        raise UserError(f"{what}: needs the package timm: pip install 'fastfgssl[timm]'") from None
    return timm


def _require_known(timm: ModuleType, name: str, what: str) -> None:
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise UserError(
            f"{what}: timm {timm.__version__} has no network of that name"
            f"{nearest(architecture, known)}; timm.list_models() lists them"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"{what}: timm {timm.__version__} has no weights {tag!r} of {architecture};"
            f" it has {', '.join(tags) or 'none'}"
        )


def _create(timm: ModuleType, name: str, image_size: int | None, in_channels: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network with random weights, for images of any side if it can take them, and the options that made it so."""
    channels = {} if in_channels == 3 else {"in_chans": in_channels}
    options: list[dict[str, Any]] = list(_ANY_SIDE)
    if image_size and timm.get_pretrained_cfg(name).fixed_input_size:
        options.append({"img_size": image_size})
    for some in options:
        try:
            return timm.create_model(name, pretrained=False, **some, **channels), some | channels
        except TypeError:  # its kind of network does not know them
            continue
    return timm.create_model(name, pretrained=False, **channels), channels


def _draw_nothing(network: nn.Module) -> None:
    """No dropout, of numbers or of paths: a step that is made again (a resumed run, `loss.cache`) is the same step."""
    modules: Iterable[Any] = network.modules()
    for module in modules:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def _find_taps(network: Any, config: ModelConfig) -> _Taps:
    if not hasattr(network, "prune_intermediate_layers"):
        raise UserError(
            f"model.backbone = {config.backbone}: this version of timm gives no feature maps of it; update timm, or"
            " take another network"
        )
    strides = [info["reduction"] for info in network.feature_info]
    if set(_STRIDES) <= set(strides):
        last = {stride: index for index, stride in enumerate(strides)}
        return _Taps([last[stride] for stride in _STRIDES], _STRIDES, normalised=False)
    if len(set(strides)) == 1 and len(strides) >= NUM_TAPS:
        thirds = [round(len(strides) * third / NUM_TAPS) - 1 for third in range(1, NUM_TAPS + 1)]
        return _Taps(thirds, tuple(strides[:NUM_TAPS]), normalised=True)
    raise UserError(
        f"model.backbone = {config.backbone}: its feature maps have strides {', '.join(map(str, strides))}; needed are"
        " maps of strides 8, 16 and 32, or a transformer whose blocks all have the same"
    )


def _load_pretrained(timm: ModuleType, name: str, options: dict[str, Any], backbone: TimmBackbone) -> None:
    """Fills the backbone with timm's weights, from timm's own cache or the network."""
    published = timm.get_pretrained_cfg(name)
    cached = _cached_file(published)
    if cached is not None:
        require_checksum(cached)
    source = cached or published.hf_hub_id or published.url
    try:
        # with its classifier: timm lets tensors be missing where a network has none
        whole = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # of three libraries, and of the files that they read
        raise UserError(
            f"{KEY} = imagenet: timm cannot load {name} from {source} ({in_a_line(error)}); see to the file or the"
            " network, or use model.weights=none"
        ) from None
    if cached is None and (downloaded := _cached_file(published)):
        require_checksum(downloaded)
    state = {key: value for key, value in whole.state_dict().items() if key in backbone.network.state_dict()}
    require_finite(state, f"{KEY} = imagenet: {source}")
    backbone.network.load_state_dict(state)


def _cached_file(published: Any) -> Path | None:
    """What timm has of the weights already; of a link into a cache, the file that it leads to."""
    if published.hf_hub_id:
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        names = [published.hf_hub_filename] if published.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        found = [try_to_load_from_cache(published.hf_hub_id, name) for name in names]
        return next((Path(file).resolve() for file in found if isinstance(file, str)), None)
    if published.url:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(published.url).path).name
        return file if file.exists() else None
    return None


def _modules_with(module: nn.Module, trained: set[int]) -> Iterator[nn.Module]:
    """The largest parts of `module` all of whose parameters are `trained` (by id), and lists of lone parameters."""
    parameters = {id(parameter) for parameter in module.parameters()}
    if parameters <= trained:
        if parameters:
            yield module
        return
    lone = [parameter for parameter in module.parameters(recurse=False) if id(parameter) in trained]
    if lone:
        yield nn.ParameterList(lone)
    for child in module.children():
        yield from _modules_with(child, trained)
