"""The transforms of model.yaml, replayed on names instead of pixels.

Those that are the same for every reader and decide what a sample holds are followed: Concatenate,
SelectBands, Pad and Mask. What is random, normalises or crops is left out, because loading does
that in its own way. Any other makes the images that it touches unusable, with the reason: none is
passed over. Which of the images is a modality's sample is inputs.py.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from eval_ingest.core.bounds import MOST_PIXELS
from eval_ingest.core.resolved import Pad
from eval_ingest.errors import ConfigError
from eval_ingest.inference.node import Node, Notes, check_class_path

_CHANCE = re.compile(r"Random\w*|\w*(Flip|Noise|Jitter|Dropout|Augment|Augmentation)")
_CHANNELS = ("0", "channel")
_SELECTORS = ("selectors", "image_selectors", "selector", "input_selector", "output_selector")
_MASK_MAKERS = {
    "Sentinel2SCLToMask": ("scl_selector", "scl", "exclude_scl_values", (3.0, 8.0, 9.0, 10.0)),
    "EarthDailyCloudMaskToMask": ("cloud_mask_selector", "cloud_mask", "clear_values", (1.0,)),
}
"""The transforms that make a mask: argument and default of its source, and of the values."""
_SELECTED = {"Resize": (), "AdaptivePooling": (), "ElevationToSlopeAspect": ("elevation",)}
"""What transforms touch that aren't followed, where their arguments don't say."""


@dataclass(frozen=True)
class Piece:
    """An input with the bands of it that are used, in their order."""

    key: str
    bands: tuple[str, ...]


@dataclass(frozen=True)
class Masking:
    """A Mask: where the mask's input has one of some values, the image has `value`."""

    key: str
    """The input that is the mask."""
    value: float
    hides: tuple[float, ...] = (0.0,)
    shows: tuple[float, ...] = ()
    """Instead of `hides`: where the mask has any other value than these."""


Channel = tuple[tuple[str, str], ...]
"""Where one channel of an image is from: (input, band) of each piece along time."""


@dataclass
class Image:
    """An image on its way: transforms change it in place, and two names may mean the same one."""

    channels: tuple[Channel, ...]
    pad: Pad | None = None
    mask: Masking | None = None
    made: bool = False
    problem: ConfigError | None = None
    shown_by: Masking | None = None
    """It is a mask made of an input: which values of that hide."""
    decibels: bool = False

    def streams(self, name: str) -> list["Stream"]:
        """Channels that are from the same inputs, together."""
        by_keys: dict[tuple[str, ...], list[Channel]] = {}
        for channel in self.channels:
            by_keys.setdefault(tuple(key for key, _ in channel), []).append(channel)
        return [
            Stream(
                name,
                tuple(Piece(k, tuple(c[t][1] for c in here)) for t, k in enumerate(keys)),
                self,
            )
            for keys, here in by_keys.items()
        ]


class Stream(NamedTuple):
    """Pieces stacked along time that an image which reaches the model has side by side."""

    name: str
    pieces: tuple[Piece, ...]
    image: Image


class MissingError(ConfigError):
    """A transform names what is not there, so that rslearn fails on every window."""


@dataclass
class Replay:
    """The images before and after the transforms."""

    images: dict[str, Image]
    """By selector, for every raster input that could be named."""
    visible: list[str]
    """Images that reach the model."""
    targets: frozenset[str]
    """Selectors of the tasks' target images, such as `segment/classes`."""
    task: str | None
    """The one of several that is ingested."""
    notes: Notes
    chance: bool = False
    """A Pad of random size was left out."""
    label_pad: Pad | None = None
    label_mask: Masking | None = None
    label_problem: ConfigError | None = None
    dropped: list[str] = field(default_factory=list)
    """Transforms left out, with the reason."""

    def run(self, transforms: Iterable[Node]) -> "Replay":
        """Apply the transforms in turn; returns itself.

        Raises:
            MissingError: a transform names an image or a target that isn't there.
        """
        followed: dict[str, Callable[[Node], None]] = {
            "Concatenate": self._concatenate,
            "SelectBands": self._select_bands,
            "Pad": self._pad,
            "Mask": self._mask,
            "Sentinel1ToDecibels": self._to_decibels,
            **dict.fromkeys(_MASK_MAKERS, self._make_mask),
        }
        for node in transforms:
            check_class_path(node)
            follow = followed.get(node.class_name, self._leave_out)
            follow(node)
        return self

    def outcome(self) -> tuple[Stream, ...]:
        """The images that reach the model, in order."""
        return tuple(stream for name in self.visible for stream in self.images[name].streams(name))

    def images_alone(self) -> tuple[object, ...]:
        """What samples are of, without their Pad."""
        streams = self.outcome()
        return *((s.name, s.pieces, s.image.mask, s.image.made) for s in streams), self.label_mask

    def pads_beside(self, others: Mapping[str, "Replay"], image: str) -> dict[str, Pad | None]:
        """The Pads of other splits, where they aren't the same; of the label for an image "" ."""
        pads = {split: other.pad_of(image) for split, other in others.items()}
        return {split: pad for split, pad in pads.items() if pad != self.pad_of(image)}

    def pad_of(self, image: str) -> Pad | None:
        """The Pad of an image that reaches the model, or of the label for ""."""
        return self.images[image].pad if image else self.label_pad

    # --- selectors ---

    def _image(self, selector: Node, transform: Node) -> Image | None:
        """The image that a selector such as `sentinel2_l2a` or `input/image` means.

        None if the transform skips what is missing.
        """
        name = selector.text().removeprefix("input/")
        if name in self.images:
            return self.images[name]
        if transform.args.get("skip_missing").flag():
            return None
        raise selector.error(
            f"names {name!r}, which isn't a raster input with passthrough",
            f"there are {', '.join(self.images) or 'none'}",
            MissingError,
        )

    def _selected(self, transform: Node, key: str) -> Iterator[tuple[Node, Image | None]]:
        """The images that a transform changes; None for one of the task's target images."""
        for selector in _listed(transform.args.get(key)):
            if not selector.text().startswith("target/"):
                image = self._image(selector, transform)
                if image is not None:
                    yield selector, image
                continue
            name = selector.text().removeprefix("target/")
            if name in self.targets:
                if name.rpartition("/")[0] in ("", self.task):
                    yield selector, None
            elif not transform.args.get("skip_missing").flag():
                raise selector.error(
                    f"names the target {name!r}, which the task doesn't have",
                    f"its images are {', '.join(sorted(self.targets)) or 'none'}",
                    MissingError,
                )

    def _write(self, selector: Node, image: Image) -> None:
        output = selector.text().removeprefix("input/")
        if not output:
            raise selector.error("is missing", "name the image that is made")
        self.images[output] = image
        if output not in self.visible:
            self.visible.append(output)

    # --- transforms that are followed ---

    def _concatenate(self, node: Node) -> None:
        args = node.args
        chosen: list[Image] = []
        for key, indices in args.get("selections").entries().items():
            if key.startswith("target/"):
                raise indices.unsupported(
                    "joins targets, which isn't supported", "leave Concatenate to inputs"
                )
            image = self._image(replace(indices, value=key), node)
            if image is not None:
                chosen.append(_with_bands(image, indices))
        if chosen:
            along_channels = args.get("concatenate_dim").text().lower() in _CHANNELS
            join = _side_by_side if along_channels else _in_turn
            self._write(args.get("output_selector"), join(chosen, args))

    def _select_bands(self, node: Node) -> None:
        """rslearn changes the image itself, so that its old name means the selected bands too."""
        source = _or(node.args.get("input_selector"), "image")
        image = self._image(source, node)
        if image is None:
            return
        before = len(image.channels)
        image.channels = _with_bands(image, node.args.get("band_indices")).channels
        if len(image.channels) < before:
            self.notes.warn(
                f"{node.place} leaves {len(image.channels)} of {before} bands of {source.text()}"
            )
        self._write(_or(node.args.get("output_selector"), "image"), image)

    def _pad(self, node: Node) -> None:
        pad = self._fixed_pad(node.args)
        for selector, image in self._selected(node, "image_selectors"):
            if pad is None:
                continue
            if image is None:
                if not selector.text().endswith("valid"):
                    self.label_pad = pad
                continue
            if image.pad not in (None, pad):
                image.problem = selector.unsupported(
                    f"pads {selector.text()!r} a second time, to {pad.size}",
                    "leave one Pad in model.yaml",
                )
            image.pad = pad

    def _fixed_pad(self, args: Node) -> Pad | None:
        low, high = size_range(args.get("size"))
        self.chance = self.chance or low is None or high is None or high - low != 1
        if low is None or high is None:
            self._drop("Pad (its size is an unset placeholder)")
            self.notes.warn(f"{args.place}: Pad is left out because its size isn't set")
            return None
        if high - low != 1:
            self._drop(f"Pad (random size, {low} to {high - 1})")
            return None
        if not 0 < low <= MOST_PIXELS:
            raise args.get("size").error(f"is {low}, but must be 1 to {MOST_PIXELS:,} pixels")
        mode = _or(args.get("mode"), "topleft").text()
        if mode not in ("topleft", "center"):
            raise args.get("mode").error(f"is {mode!r}, but must be topleft or center")
        return Pad(size=low, center=mode == "center")

    def _mask(self, node: Node) -> None:
        mask = self._image(_or(node.args.get("mask_selector"), "mask"), node)
        if mask is None:
            return
        masking = _masking(mask, node.args)
        for selector, image in self._selected(node, "selectors"):
            if image is None:
                self._mask_label(selector, masking, mask)
            else:
                _mask_image(image, mask, masking, selector)

    def _mask_label(self, selector: Node, masking: Masking | ConfigError, mask: Image) -> None:
        """Only a mask on the valid pixels is followed: it takes labels away."""
        if isinstance(masking, ConfigError):
            self.label_problem = masking
        elif not selector.text().endswith("/valid") or masking.value != 0:
            self.label_problem = selector.unsupported(
                "puts other classes or numbers where a mask is, which isn't supported",
                "mask the target's `valid` by 0 instead",
            )
        elif mask.pad != self.label_pad:
            self.label_problem = selector.unsupported(
                "masks a target that isn't padded as the mask is", "pad both"
            )
        else:
            self.label_mask = masking

    def _make_mask(self, node: Node) -> None:
        """A mask from a raster of classes, such as Sentinel-2's scene classification."""
        argument, default, values, usual = _MASK_MAKERS[node.class_name]
        image = self._image(_or(node.args.get(argument), default), node)
        if image is None:
            return
        listed = tuple(float(value.number() or 0) for value in node.args.get(values).items())
        hides = node.class_name == "Sentinel2SCLToMask"
        shown_by = Masking("", 0.0, **{"hides" if hides else "shows": listed or usual})
        made = replace(image, made=True, shown_by=shown_by, decibels=False)
        self._write(_or(node.args.get("output_selector"), "mask"), made)

    def _to_decibels(self, node: Node) -> None:
        self._drop("Sentinel1ToDecibels (statistics and models get decibels anyway)")
        for selector in _listed(node.args.get("selectors")):
            name = selector.text().removeprefix("input/")
            image = self.images.get(name)
            if image is None:
                continue  # it changes no sample of ours
            image.decibels = True
            if node.args.get("from_decibels").flag():
                image.problem = node.unsupported(
                    f"{name!r} is stored in decibels, which isn't supported",
                    "leave it out with --modalities",
                )

    # --- the others ---

    def _leave_out(self, node: Node) -> None:
        name = node.class_name or "?"
        if name == "Identity":
            return
        if _CHANCE.fullmatch(name):
            self._drop(f"{name} (random)")
        elif name == "Crop" and not node.args.get("offset").given:
            self._drop("Crop (the crop is chosen when loading)")
        elif name.endswith("Normalize"):
            self._drop(f"{name} (normalisation is chosen when loading)")
        else:
            self._not_followed(node)

    def _not_followed(self, node: Node) -> None:
        """Whatever it may touch can't be a sample."""
        name = node.class_name or "?"
        named = [s for key in _SELECTORS if node.args.get(key).given
                 for s in _listed(node.args.get(key))]  # fmt: skip
        if not named and name in _SELECTED:
            named = [replace(node, value=selector) for selector in _SELECTED[name]]
            if not named:
                self._drop(f"{name} (it selects nothing)")
                return
        problem = node.unsupported(
            f"{name} would change samples and isn't supported",
            "leave the images that it changes out with --modalities, or name a copy of model.yaml "
            "without it with --olmoearth-run-config-path",
        )
        self._drop(f"{name} (not supported)")
        images = [s.text().removeprefix("input/") for s in named] or list(self.images)
        for image in (self.images[key] for key in images if key in self.images):
            image.problem = image.problem or problem
        if not named or any(s.text().startswith("target/") for s in named):
            self.label_problem = self.label_problem or problem

    def _drop(self, text: str) -> None:
        if text not in self.dropped:
            self.dropped.append(text)


def _listed(node: Node) -> list[Node]:
    """The elements of a list, the lone text, or rslearn's usual selector where there is none."""
    return node.items() if isinstance(node.value, list) else [_or(node, "image")]


def _or(node: Node, default: str) -> Node:
    """The node, with rslearn's usual text where the file has none."""
    return node if node.given else replace(node, value=default)


def _with_bands(image: Image, indices: Node) -> Image:
    """A copy with the bands at these places; an empty list keeps all."""
    count = len(image.channels)
    wanted = [index.integer() for index in indices.items()]
    if any(i is None or not -count <= i < count for i in wanted):
        raise indices.error(
            f"is {indices.shown}, but the image has {count} bands", "correct the band indices"
        )
    kept = tuple(image.channels[i] for i in wanted if i is not None)
    return replace(image, channels=kept or image.channels)


def _side_by_side(images: list[Image], args: Node) -> Image:
    """Joined along the channels."""
    made = _joined(images, tuple(c for image in images for c in image.channels), args)
    bands = [channel[0][1] for image in images for channel in dict.fromkeys(image.channels)]
    twice = [band for band in dict.fromkeys(bands) if bands.count(band) > 1]
    if twice and len({key for c in made.channels for key, _ in c}) > 1:
        made.problem = args.get("selections").unsupported(
            f"puts {', '.join(twice)} of several images side by side, but a sample has each band "
            "once",
            "join them along time (concatenate_dim: 1), or leave the join out: each image is then "
            "a timestep",
        )
    return made


def _in_turn(images: list[Image], args: Node) -> Image:
    """Joined along time: channel by channel, which must be the same bands."""
    channels = tuple(
        tuple(itertools.chain(*places))
        for places in zip(*(image.channels for image in images), strict=False)
    )
    made = _joined(images, channels, args)
    orders = {" ".join(c[0][1] for c in image.channels): image for image in images}
    if len(orders) > 1:
        shown = "; ".join(f"{image.channels[0][0][0]}: {bands}" for bands, image in orders.items())
        made.problem = args.get("selections").unsupported(
            f"stacks images whose bands differ in number or order along time ({shown})",
            "select the same bands in the same order from each",
        )
    elif any(len(set(channel)) < len(channel) for channel in channels):
        made.problem = args.get("selections").unsupported(
            "stacks an image along time more than once", "join each once"
        )
    return made


def _joined(images: list[Image], channels: tuple[Channel, ...], args: Node) -> Image:
    first = images[0]
    made = Image(channels, first.pad, first.mask, True)
    made.decibels = any(image.decibels for image in images)
    made.problem = next((image.problem for image in images if image.problem), None)
    if any((image.pad, image.mask) != (first.pad, first.mask) for image in images):
        made.problem = args.unsupported(
            "joins images of which only some are padded or masked alike",
            "pad and mask the joined image instead",
        )
    return made


def _masking(mask: Image, args: Node) -> Masking | ConfigError:
    """What a Mask does, or why it can't be followed."""
    if mask.problem or mask.mask or len(mask.channels) != 1 or len(mask.channels[0]) != 1:
        return mask.problem or args.unsupported(
            "masks by an image that isn't one input of one band, which isn't supported",
            "leave the masked images out with --modalities",
        )
    shown_by = mask.shown_by or Masking("", 0.0)
    value = args.get("mask_value").integer() or 0
    return replace(shown_by, key=mask.channels[0][0][0], value=float(value))


def _mask_image(image: Image, mask: Image, masking: Masking | ConfigError, selector: Node) -> None:
    if image.decibels and isinstance(masking, Masking):
        masking = replace(masking, value=10 ** (masking.value / 10))  # samples are linear
    if isinstance(masking, ConfigError):
        image.problem = masking
    elif image.pad != mask.pad or (image.pad and masking.value != 0):
        image.problem = selector.unsupported(
            "is padded before it is masked", "mask first, then pad"
        )
    elif not masking.value.is_integer() or image.mask not in (None, masking):
        image.problem = selector.unsupported(
            "is masked twice, or by a value in decibels that is no whole number before, which "
            "isn't supported",
            "mask once, by 0",
        )
    else:
        image.mask = masking


def replay(
    transforms: Iterable[Node],
    bands: Mapping[str, tuple[str, ...]],
    targets: Iterable[str],
    task: str | None,
    notes: Notes,
) -> Replay:
    """Replay transforms on raster inputs of these bands: those that are passed through.

    Raises:
        MissingError: a transform names an image or a target that isn't there.
    """
    images = {k: Image(tuple(((k, band),) for band in names)) for k, names in bands.items()}
    return Replay(images, list(images), frozenset(targets), task, notes).run(transforms)


def size_range(node: Node) -> tuple[int | None, int | None]:
    """The sizes of rslearn's Pad or Crop, from the first to before the last; None if unset."""
    if not isinstance(node.value, list):
        size = node.integer()
        if size is None and not node.unset:
            raise node.error("is missing", "give a number of pixels")
        return (size, size + 1 if size is not None else None)
    sizes = [item.integer() for item in node.items()]
    if len(sizes) != 2:
        raise node.error(f"is {node.shown}, but must be a number or [smallest, beyond largest]")
    return (sizes[0], sizes[1])
