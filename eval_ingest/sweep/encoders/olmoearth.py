"""OlmoEarth's pretrained encoders, through olmoearth_pretrain_minimal."""

import hashlib
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.errors import SweepError, optional_part
from eval_ingest.loading import EvalDataset
from eval_ingest.loading.olmoearth import MISSING, SEEN, BandGroups, OlmoEarthAdapter
from eval_ingest.settings import user_path
from eval_ingest.sweep.encoders.base import Embeddings

VERSION = 1
"""Of what is done around the model; part of the fingerprint."""

SIZES = ("nano", "tiny", "small", "base", "large")
VERSIONS = {"v1": "V1", "v1.1": "V1_1", "v1.2": "V1_2", "v1.3": "V1_3"}
"""Model versions, and how the hub's model names have them."""
DEFAULT_VERSION = "v1.2"

MODALITIES = ("sentinel2_l2a", "sentinel1", "landsat")
"""What the published encoders were trained on."""

RANDOM_SEED = 0

_SPEC = re.compile(r"olmoearth:(?:(?P<version>v[\d.]+)-)?(?P<size>[a-z]+)(?:@(?P<weights>.+))?$")


@dataclass(frozen=True)
class OlmoEarthSpec:
    """`olmoearth:[version-]size[@weights]`, parsed."""

    size: str
    version: str
    weights: str
    """`hub`, `random`, or a path."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a spec.

        Raises:
            SweepError: it has another form, an unknown size or version, or a path that isn't there.
        """
        match = _SPEC.match(text)
        size = match["size"] if match else ""
        version = (match["version"] if match else None) or DEFAULT_VERSION
        if size not in SIZES or version not in VERSIONS:
            raise SweepError(
                f"no encoder {text!r}; say olmoearth:SIZE or olmoearth:VERSION-SIZE with one of "
                f"{', '.join(SIZES)} and {', '.join(VERSIONS)}, then nothing for the hub's "
                "weights, @random, or @/path/to/weights"
            )
        weights = (match["weights"] if match else None) or "hub"
        if weights not in ("hub", "random") and not user_path(weights).exists():
            raise SweepError(
                f"encoder {text}: there is nothing at {weights}; give a folder with config.json "
                "and weights.pth, or a .pth file"
            )
        return cls(size, version, weights)


class OlmoEarthEncoder:
    """A frozen OlmoEarth encoder; tokens are averaged over time, band sets and modalities.

    The model is used as it is: put it on the device and into evaluation mode before.
    """

    normalize: Literal["dataset", "pretrained"] | None = "pretrained"
    method = "norm_no_clip_2_std"
    nodata = float("nan")  # such patches are missing tokens
    pooling = "mean"
    """Of tokens: mean or max."""

    def __init__(
        self,
        model: torch.nn.Module,
        name: str,
        weights: str,
        patch_size: int,
        device: torch.device,
        digest: str = "",
    ) -> None:
        self.name, self.weights, self.patch_size = name, weights, patch_size
        self.fingerprint = fingerprint("olmoearth", VERSION, digest)
        self._model: Any = model
        self.device = device
        self._adapters: dict[tuple[str, ...], OlmoEarthAdapter] = {}

    def embed(self, batch: dict[str, Any], dataset: EvalDataset) -> Embeddings:
        """Patches: the mean over each modality's seen tokens, then over modalities.

        Pooled: the mean over all seen tokens of the window.
        """
        sample = self._adapter(dataset)(batch)
        # Of the two packages, one leaves out what is None, and the other has no argument for it.
        given = {k: v for k, v in sample.as_dict().items() if v is not None}
        fields = {k: v.to(self.device) for k, v in given.items()}
        fields = _without_gaps(fields, self.patch_size)
        seen = _seen_tokens(fields, self.patch_size)
        patches: torch.Tensor | None = None
        pooled: torch.Tensor | None = None
        # In evaluation the model attends to what fills up the windows with fewer tokens, so
        # windows are only embedded together where they have equally many.
        for number in sorted(set(seen.tolist())):
            group = torch.nonzero(seen == number)[:, 0]
            found = self._embed(type(sample), {k: v[group] for k, v in fields.items()})
            if patches is None or pooled is None:
                patches = found[0].new_empty(len(seen), *found[0].shape[1:])
                pooled = found[1].new_empty(len(seen), *found[1].shape[1:])
            patches[group], pooled[group] = found
        return Embeddings(patches, pooled)

    def _embed(
        self, sample_type: Any, fields: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        masks = [value for key, value in fields.items() if key.endswith("_mask")]
        complete = all(bool((mask == SEEN).all()) for mask in masks)
        # bfloat16 is what the published models are trained and evaluated in on GPUs.
        fast = torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")
        with warnings.catch_warnings(), fast:
            warnings.simplefilter("ignore")  # of nested tensors and the like inside the model
            output = self._model(sample_type(**fields), self.patch_size, fast_pass=complete)
        tokens = output["tokens_and_masks"]
        found = _pool(
            {
                name: (getattr(tokens, name), getattr(tokens, f"{name}_mask"))
                for name in tokens.modalities
            },
            self.pooling == "max",
        )
        return found[0].cpu(), found[1].cpu()

    def _adapter(self, dataset: EvalDataset) -> OlmoEarthAdapter:
        key = dataset.name, dataset.split, dataset.metadata.fingerprint
        if key not in self._adapters:
            unknown = set(dataset.bands) - set(MODALITIES)
            if unknown:
                raise SweepError(f"{self.name} has no {', '.join(sorted(unknown))}")
            groups: BandGroups = {
                name: self._model.tokenization_config.get_bandset_indices(name)
                for name in dataset.bands
            }
            # Models trained with band dropout know zeros for missing bands; v1 doesn't.
            zero = getattr(self._model, "band_dropout_rate", 0.0) > 0
            self._adapters[key] = OlmoEarthAdapter(
                dataset, missing_bands="zero" if zero else "impute", band_groups=groups
            )
        return self._adapters[key]


def _without_gaps(fields: dict[str, torch.Tensor], patch_size: int) -> dict[str, torch.Tensor]:
    """Pixels that aren't finite as 0; patches of a timestep that hold no others are missing.

    Radar is NaN beyond the edge of a scene, and one NaN would make all of a window's tokens NaN.
    """
    p, found = patch_size, dict(fields)
    for name in [key for key in fields if f"{key}_mask" in fields]:
        finite = torch.isfinite(fields[name])
        if bool(finite.all()):
            continue
        found[name] = torch.where(finite, fields[name], 0.0)
        batch, height, width, slots, _ = finite.shape
        patches = finite.any(-1).view(batch, height // p, p, width // p, p, slots)
        there = patches.any(4).any(2)
        there[~there.flatten(1).any(1)] = True  # without any token there is no embedding
        there = there.repeat_interleave(p, 1).repeat_interleave(p, 2)[..., None]
        found[f"{name}_mask"] = torch.where(there, fields[f"{name}_mask"], MISSING)
    return found


def _seen_tokens(fields: dict[str, torch.Tensor], patch_size: int) -> torch.Tensor:
    """(B,) how many tokens of each window the encoder sees."""
    p = patch_size
    masks = [value[:, ::p, ::p] for key, value in fields.items() if key.endswith("_mask")]
    return torch.stack([(mask == SEEN).flatten(1).sum(1) for mask in masks]).sum(0)


def _pool(
    tokens: dict[str, tuple[torch.Tensor, torch.Tensor]], highest: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (B, h, w, D) and pooled (B, D): means, or the highest values, of seen tokens.

    Args:
        tokens: per modality values (B, h, w, T, S, D) and mask (B, h, w, T, S).
        highest: of each value instead of the mean; 0 in patches without tokens.
    """
    if highest:
        low = float("-inf")
        found = torch.stack(
            [
                values.float().masked_fill((mask != SEEN)[..., None], low).amax((3, 4))
                for values, mask in tokens.values()
            ]
        ).amax(0)
        pooled = found.amax((1, 2))
        return found.masked_fill(found == low, 0), pooled.masked_fill(pooled == low, 0)
    sums, numbers = [], []
    for values, mask in tokens.values():
        seen = (mask == SEEN)[..., None]
        sums.append(torch.where(seen, values.float(), 0.0).sum((3, 4)))
        numbers.append(seen.sum((3, 4)))  # (B, h, w, 1)
    total, number = torch.stack(sums), torch.stack(numbers)
    modalities = (number > 0).sum(0).clamp(min=1)
    patches = (total / number.clamp(min=1)).sum(0) / modalities
    pooled = total.sum((0, 2, 3)) / number.sum((0, 2, 3)).clamp(min=1)
    return patches, pooled


def load_olmoearth(text: str, patch_size: int, device: torch.device) -> OlmoEarthEncoder:
    """The encoder of a spec such as `olmoearth:nano@random`.

    Raises:
        SweepError: the package isn't there, the weights can't be had, or they don't fit.
    """
    spec = OlmoEarthSpec.parse(text)
    with optional_part("olmoearth", text, SweepError):
        import olmoearth_pretrain_minimal as package
    name = f"olmoearth:{spec.version}-{spec.size}"
    if spec.weights == "random":
        name, weights = f"{name}@random", f"random initialisation (seed {RANDOM_SEED})"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model = _build(package, text, spec, list(MODALITIES))
    elif spec.weights == "hub":
        model, weights = _from_hub(package, text, spec)
    else:
        model, weights = _from_path(package, text, spec)
    digest = _digest(model)
    model = model.to(device).eval().requires_grad_(False)
    return OlmoEarthEncoder(model, name, weights, patch_size, device, digest)


def _build(
    package: Any, text: str, spec: OlmoEarthSpec, modalities: list[str] | None
) -> torch.nn.Module:
    """Its encoder, of these modalities or of all: decoder and target aren't needed."""
    try:
        model: torch.nn.Module = package.OlmoEarthPretrain_v1(
            spec.size, spec.version, supported_modality_names=modalities
        ).encoder
    except (ValueError, TypeError) as error:
        raise SweepError(f"encoder {text}: {error}") from error
    return model


def weights_at_hand(text: str) -> bool:
    """Whether the hub's weights of a spec lie in this machine's cache of the hub."""
    try:
        import olmoearth_pretrain_minimal as package
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    repository = _model_id(package, text, OlmoEarthSpec.parse(text)).repo_id()
    return isinstance(try_to_load_from_cache(repository, "weights.pth"), str)


def _model_id(package: Any, text: str, spec: OlmoEarthSpec) -> Any:
    found = getattr(
        package.ModelID, f"OLMOEARTH_{VERSIONS[spec.version]}_{spec.size.upper()}", None
    )
    if found is None:
        known = ", ".join(member.value for member in package.ModelID)
        raise SweepError(f"encoder {text}: the hub has no such model; it has {known}")
    return found


def _from_hub(package: Any, text: str, spec: OlmoEarthSpec) -> tuple[torch.nn.Module, str]:
    model_id = _model_id(package, text, spec)
    repository = model_id.repo_id()
    try:
        model = package.load_model_from_id(model_id).encoder
    except (OSError, ValueError, RuntimeError) as error:
        raise SweepError(
            f"encoder {text}: {repository} can't be had from the Hugging Face hub "
            f"({_first_line(error)}); where there is a network run: hf download {repository} "
            f"--local-dir DIR, and say {text}@DIR here; or {text}@random for random weights"
        ) from error
    return model, f"hub {repository}"


def _from_path(package: Any, text: str, spec: OlmoEarthSpec) -> tuple[torch.nn.Module, str]:
    path = user_path(spec.weights)
    try:
        if path.is_dir():
            model = package.load_model_from_path(path).encoder
        else:
            model = _build(package, text, spec, None)
            state = torch.load(path, map_location="cpu", weights_only=True)
            named = ((key.removeprefix("model.").partition("."), v) for key, v in state.items())
            model.load_state_dict({key: v for (part, _, key), v in named if part == "encoder"})
    except SweepError:
        raise
    except Exception as error:  # whatever a damaged file makes json, pickle and torch raise
        raise SweepError(
            f"encoder {text}: the weights at {path} can't be loaded ({_first_line(error)}); give "
            "a folder with config.json and weights.pth, or the .pth file of this size and version"
        ) from error
    expected = {"nano": 128, "tiny": 192, "small": 384, "base": 768, "large": 1024}[spec.size]
    found = getattr(model, "embedding_size", expected)
    if found != expected:
        raise SweepError(
            f"encoder {text}: the weights at {path} have embeddings of size {found}, "
            f"{spec.size} has {expected}; name the size that they are of"
        )
    return model, str(path.resolve())


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:200].rpartition(". ")[0] or line[:200]


def _digest(model: torch.nn.Module) -> str:
    """A hash of all weights, so that equal weights are known as equal wherever they come from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
