"""The transforms of model.yaml, replayed on names instead of pixels.

The deterministic ones that decide what a sample holds are kept: Concatenate, SelectBands and Pad.
Those that are random, normalise or crop are left out, because loading does that in its own way.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from eval_ingest.core.resolved import Pad
from eval_ingest.errors import UnsupportedError
from eval_ingest.inference.node import Node, check_class_path
from eval_ingest.inference.notes import Notes

_RANDOM = ("Flip", "GaussianNoise")
_CHANNELS = ("0", "channel")


@dataclass(frozen=True)
class Piece:
    """An input with the bands of it that are used, in their order."""

    key: str
    bands: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """An image on its way through the transforms: pieces stacked along time."""

    name: str
    pieces: tuple[Piece, ...]
    pad: Pad | None = None


@dataclass
class Replay:
    """The streams before and after the transforms."""

    streams: dict[str, Stream]
    """By selector, for every raster input that could be named."""
    visible: list[str]
    """Streams that reach the model."""
    notes: Notes
    label_pad: Pad | None = None
    dropped: list[str] = field(default_factory=list)
    """Transforms left out, with the reason."""
    _aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Images that are several streams side by side in their channels."""

    def run(self, transforms: Iterable[Node]) -> "Replay":
        """Apply the transforms in turn; returns itself."""
        for node in transforms:
            check_class_path(node)
            match node.class_name:
                case "Concatenate":
                    self._concatenate(node.args)
                case "SelectBands":
                    self._select_bands(node.args)
                case "Pad":
                    self._pad(node.args)
                case "Identity":
                    pass
                case _:
                    self._leave_out(node)
        return self

    def outcome(self) -> tuple[Stream, ...]:
        """The streams that reach the model, in order."""
        return tuple(self.streams[name] for name in self.visible)

    def _named(self, selector: Node) -> list[str]:
        """The streams that a selector such as `sentinel2_l2a` or `input/image` means."""
        name = selector.text().removeprefix("input/")
        return list(self._aliases.get(name, (name,) if name in self.streams else ()))

    def _concatenate(self, args: Node) -> None:
        selections = args.get("selections").entries()
        if any(key.startswith("target/") for key in selections):
            raise args.get("selections").error(
                "joins targets, which isn't supported",
                "leave Concatenate to inputs",
                UnsupportedError,
            )
        joined: list[str] = []
        for key, indices in selections.items():
            names = self._named(Node(key, args.file, indices.path, args.where))
            if not names and not args.get("skip_missing").flag():
                raise indices.error(
                    f"joins {key!r}, which isn't a raster input",
                    f"there are {', '.join(self.streams)}",
                )
            for name in names:
                self._take_bands(name, indices)
            joined.extend(names)
        if not joined:
            return
        output = args.get("output_selector").text().removeprefix("input/")
        if not output:
            raise args.get("output_selector").error("is missing", "name the joined image")
        if args.get("concatenate_dim").text().lower() in _CHANNELS:
            # Samples hold each modality by itself, so that channels side by side stay apart.
            self._aliases[output] = tuple(joined)
            self._show(joined)
        else:
            self._stack(output, joined, args)

    def _show(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.visible:
                self.visible.append(name)

    def _stack(self, output: str, joined: list[str], args: Node) -> None:
        """Join streams along time into one, in the place of the first."""
        streams = [self.streams[name] for name in joined]
        pieces = tuple(piece for stream in streams for piece in stream.pieces)
        odd = next((piece for piece in pieces if piece.bands != pieces[0].bands), None)
        if odd is not None:
            orders = "; ".join(
                f"{piece.key}: {' '.join(piece.bands)}" for piece in (pieces[0], odd)
            )
            raise args.get("selections").error(
                f"stacks images whose bands differ in number or order along time ({orders})",
                "select the same bands in the same order from each",
                UnsupportedError,
            )
        pads = {stream.pad for stream in streams}
        if len(pads) > 1:
            raise args.error(
                "joins images of which only some are padded alike",
                "pad the joined image instead",
                UnsupportedError,
            )
        places = [self.visible.index(name) for name in joined if name in self.visible]
        place = min(places, default=len(self.visible))
        self.visible = [name for name in self.visible if name not in joined and name != output]
        self.visible.insert(min(place, len(self.visible)), output)
        self.streams[output] = Stream(output, pieces, pads.pop())

    def _select_bands(self, args: Node) -> None:
        source = args.get("input_selector")
        names = self._named(source if source.given else replace(source, value="image"))
        output = args.get("output_selector").text() or "image"
        if len(names) != 1:
            self.notes.warn(f"{args.place}: SelectBands is not applied; no one image is meant")
            return
        self._take_bands(names[0], args.get("band_indices"))
        if output != names[0]:
            self.streams[output] = replace(self.streams[names[0]], name=output)
            self.visible = [output if name == names[0] else name for name in self.visible]
            self._show([output])

    def _take_bands(self, name: str, indices: Node) -> None:
        """Keep the bands at these places of every piece; an empty list keeps all."""
        wanted = [index.integer() for index in indices.items()]
        if not wanted:
            return
        stream = self.streams[name]
        pieces = []
        for piece in stream.pieces:
            if any(i is None or not -len(piece.bands) <= i < len(piece.bands) for i in wanted):
                raise indices.error(
                    f"is {indices.shown}, but input {piece.key!r} has {len(piece.bands)} bands",
                    "correct the band indices",
                )
            bands = tuple(piece.bands[i] for i in wanted if i is not None)
            pieces.append(replace(piece, bands=bands))
        self.streams[name] = replace(stream, pieces=tuple(pieces))

    def _pad(self, args: Node) -> None:
        pad = self._fixed_pad(args)
        if pad is None:
            return
        selectors = args.get("image_selectors")
        for selector in selectors.items() or [replace(selectors, value="image")]:
            if selector.text().startswith("target/"):
                if selector.text().endswith(("/classes", "/values")):
                    self.label_pad = pad
                continue
            for name in self._named(selector):
                stream = self.streams[name]
                if stream.pad not in (None, pad):
                    raise selector.error(
                        f"pads {name!r} a second time, to {pad.size}",
                        "leave one Pad in model.yaml",
                        UnsupportedError,
                    )
                self.streams[name] = replace(stream, pad=pad)

    def _fixed_pad(self, args: Node) -> Pad | None:
        low, high = size_range(args.get("size"))
        if low is None or high is None:
            self._drop("Pad (its size is an unset placeholder)")
            self.notes.warn(f"{args.place}: Pad is left out because its size isn't set")
            return None
        if high - low != 1:
            self._drop(f"Pad (random size, {low} to {high - 1})")
            return None
        mode = args.get("mode").text() or "topleft"
        if mode not in ("topleft", "center"):
            raise args.get("mode").error(f"is {mode!r}, but must be topleft or center")
        return Pad(size=low, center=mode == "center")

    def _leave_out(self, node: Node) -> None:
        name = node.class_name or "?"
        if name in _RANDOM or name.startswith("Random"):
            self._drop(f"{name} (random)")
        elif name == "Crop":
            self._drop("Crop (the crop is chosen when loading)")
        elif name.endswith("Normalize"):
            self._drop(f"{name} (normalisation is chosen when loading)")
        elif name == "Sentinel1ToDecibels" and not node.args.get("from_decibels").flag():
            self._drop(f"{name} (statistics and models get decibels anyway)")
        else:
            self._drop(f"{name} (not applied)")
            self.notes.warn(f"{node.place}: {name} is not applied; samples are without it")

    def _drop(self, text: str) -> None:
        if text not in self.dropped:
            self.dropped.append(text)


def replay(
    transforms: Iterable[Node],
    bands: Mapping[str, tuple[str, ...]],
    visible: Iterable[str],
    notes: Notes,
) -> Replay:
    """Replay transforms on raster inputs of these bands, of which some reach the model."""
    streams = {key: Stream(key, (Piece(key, names),)) for key, names in bands.items()}
    return Replay(streams, list(visible), notes).run(transforms)


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
