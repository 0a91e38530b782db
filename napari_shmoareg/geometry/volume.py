"""Volume and VolumePair: images and label maps on a grid, with the names of the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry.grid import Grid

LARGEST_RATIO = 500.0  # Ours: of voxel sizes; micrometres read as mm differ by 1000
MAX_COUNTED = 1 << 20  # labels below this value are counted instead of sorted


@dataclass(frozen=True)
class LabelNames:
    """Names of structures by label.

    Attributes
    ----------
    names : mapping of int to str
        Only of labels that have a name.
    source : str
        Where they are from, for display after "names from": "labels.ctbl".
    """

    names: Mapping[int, str] = field(default_factory=dict)
    source: str = ""

    def __bool__(self) -> bool:
        return bool(self.names)

    def get(self, label: int) -> str:
        """Return the name of a label, or an empty text."""
        return self.names.get(label, "")

    def describe(self, label: int) -> str:
        """Return number and name, as "17 Left-Hippocampus"; the number alone without a name."""
        return f"{label} {self.get(label)}".rstrip()

    def within(self, labels: Iterable[int]) -> LabelNames:
        """Return the names of these labels only."""
        kept = {label: self.names[label] for label in labels if label in self.names}
        return LabelNames(kept, self.source if kept else "")

    def joined(self, other: LabelNames) -> LabelNames:
        """Return the names of both; a label with two different names gets "liver / spleen"."""
        names = {**other.names, **self.names}
        names |= {n: f"{self.names[n]} / {other.names[n]}" for n in self.conflicts(other)}
        sources = dict.fromkeys(each.source for each in (self, other) if each)
        return LabelNames(names, " and ".join(sources))

    def conflicts(self, other: LabelNames) -> list[int]:
        """Return the labels that have different names, beyond case and punctuation."""
        return [
            label
            for label, name in self.names.items()
            if _letters(other.names.get(label, name)) != _letters(name)
        ]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image or label map in its own space.

    Parameters
    ----------
    values : (I, J, K) array
        Any real dtype.  Labels are stored as integers.
    grid : Grid
        Grid of the values.
    name : str
        For display: a file name without its extension, or the name of a layer.
    is_labels : bool
        Labels are resampled by nearest neighbour, images by linear interpolation.
    label_names : LabelNames
        Names of the labels; empty if they are not known.

    Raises
    ------
    InputError
        If the values are not 3D, not on the grid, complex, or labels with fractions.
    """

    values: NDArray
    grid: Grid
    name: str = "image"
    is_labels: bool = False
    label_names: LabelNames = field(default_factory=LabelNames)

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim != 3:
            raise InputError(
                f"'{self.name}' has {values.ndim} axes {values.shape}; a 3D volume was expected. "
                "Pick one volume or channel of it first."
            )
        if values.shape != self.grid.shape:
            raise InputError(
                f"'{self.name}' has the shape {values.shape}, its grid {self.grid.shape}; they must"
                " agree."
            )
        if values.dtype.kind not in "biuf":
            raise InputError(
                f"'{self.name}' contains {values.dtype} values; real numbers were expected."
            )
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)
        if self.is_labels and values.dtype.kind == "f":
            values = _whole_numbers(values, self.name)
        object.__setattr__(self, "values", values)

    @property
    def labels(self) -> list[int]:
        """The label values that occur, excluding 0 (background)."""
        return labels_in(self.values)

    @property
    def float_type(self) -> np.dtype:
        """The dtype for computing: float32, or float64 if float32 would lose differences."""
        if (
            self.values.dtype.itemsize < 4
            or self.values.dtype == np.float32
            or not self.values.size
        ):
            return np.dtype(np.float32)
        return float_type(float(self.values.min()), float(self.values.max()))

    def with_values(self, values: NDArray, name: str | None = None) -> Volume:
        """Return a volume with other values on the same grid."""
        return replace(self, values=values, name=self.name if name is None else name)

    def check_image(self, role: str) -> None:
        """Check that an image can be registered.

        Parameters
        ----------
        role : str
            "moving" or "fixed", for the message.

        Raises
        ------
        InputError
            If an axis has a single voxel, or if voxels are NaN, infinite or all equal.
        """
        if min(self.values.shape) < 2:
            raise InputError(
                f"The {role} image '{self.name}' has the shape {self.values.shape}: a single slice."
                " SHMoAReg registers 3D volumes; stack the slices first."
            )
        bad = int(self.values.size - np.isfinite(self.values).sum())
        if bad:
            raise InputError(
                f"The {role} image '{self.name}' has {bad} voxels that are NaN or infinite (of"
                f" {self.values.size}).",
                remedy="Give {nan:0} to read them as 0, or correct the image.",
            )
        low, high = self.values.min(), self.values.max()
        if low < high and not 1e-30 < float(high) - float(low) < 1e30:
            raise InputError(
                f"The values of the {role} image '{self.name}' span {float(high) - float(low):.3g},"
                " beyond what single precision holds. Scale the intensities to an ordinary range"
                " first."
            )
        if low == high:
            raise InputError(
                f"The {role} image '{self.name}' is constant (every voxel is {low}): nothing to"
                " register."
            )


@dataclass(frozen=True, eq=False)
class VolumePair:
    """A moving and a fixed image, with optional label maps and a mask of the fixed image.

    The images are compared only where the mask is not 0, and everywhere without one.  Labels whose
    grid differs from the image's only by rounding (`Grid.same_space`) get its grid.

    Raises
    ------
    InputError
        If labels or the mask are not on the grid of their image, the mask is empty, or the voxel
        sizes of the two images differ by a factor of more than 500.
    """

    moving: Volume
    fixed: Volume
    moving_labels: Volume | None = None
    fixed_labels: Volume | None = None
    fixed_mask: Volume | None = None

    def __post_init__(self) -> None:
        for name, image, labels in (
            ("moving_labels", self.moving, self.moving_labels),
            ("fixed_labels", self.fixed, self.fixed_labels),
            ("fixed_mask", self.fixed, self.fixed_mask),
        ):
            role, verb = name.replace("_", " "), "is" if name.endswith("mask") else "are"
            if labels is None:
                continue
            if not labels.is_labels:
                raise InputError(
                    f"The {role} '{labels.name}' {verb} an image; create that Volume with"
                    " is_labels=True."
                )
            if not labels.grid.same_space(image.grid):
                raise InputError(
                    f"The {role} '{labels.name}' {verb} on another grid than the image"
                    f" '{image.name}': {differences(labels.grid, image.grid)}. Resample the labels"
                    " onto the image (nearest neighbour) first."
                )
            if not np.array_equal(labels.grid.affine, image.grid.affine):
                object.__setattr__(self, name, replace(labels, grid=image.grid))
        if self.fixed_mask is not None and not self.fixed_mask.values.any():
            raise InputError(
                f"The mask '{self.fixed_mask.name}' is empty: no voxel of the fixed image"
                f" '{self.fixed.name}' is in it, so that nothing could be compared."
            )
        self._check_spacings()

    def _check_spacings(self) -> None:
        """Refuse two images of implausibly different voxel size."""
        sizes = [float(np.prod(each.grid.spacing) ** (1 / 3)) for each in (self.moving, self.fixed)]
        if max(sizes) > LARGEST_RATIO * min(sizes):
            moving, fixed = (_spacing(each.grid) for each in (self.moving, self.fixed))
            raise InputError(
                f"The voxels of the moving image '{self.moving.name}' ({moving} mm) and of the"
                f" fixed image '{self.fixed.name}' ({fixed} mm) differ in size by a factor of"
                f" {max(sizes) / min(sizes):.3g}; less than {LARGEST_RATIO:g} was expected. One of"
                " them is probably in another unit, such as micrometres read as mm. Correct"
                " the header of that image, or export it again."
            )

    @property
    def volumes(self) -> dict[str, Volume]:
        """The volumes present, by role: moving, fixed, and their labels and mask."""
        roles = ("moving", "fixed", "moving_labels", "fixed_labels", "fixed_mask")
        return {role: volume for role in roles if (volume := getattr(self, role)) is not None}

    @property
    def label_names(self) -> LabelNames:
        """The names of the labels of both images."""
        maps = (self.moving_labels, self.fixed_labels)
        one, other = (LabelNames() if v is None else v.label_names for v in maps)
        return one.joined(other)

    @property
    def swapped(self) -> VolumePair:
        """The pair with moving and fixed exchanged, without the mask of the fixed image."""
        return VolumePair(self.fixed, self.moving, self.fixed_labels, self.moving_labels)


def labels_in(values: NDArray) -> list[int]:
    """Return the values that occur in a label map, sorted, excluding 0."""
    if (
        values.size
        and values.dtype.kind in "iub"
        and values.min() >= 0
        and values.max() < MAX_COUNTED
    ):
        found = np.flatnonzero(np.bincount(values.ravel()))
    else:
        found = np.unique(values)
    return [int(value) for value in found if value != 0]


def differences(one: Grid, other: Grid) -> str:
    """Describe how two grids differ, with enough digits to show it."""
    if one.shape != other.shape:
        return f"shape {one.shape} against {other.shape}"
    corners = np.linalg.norm(one.corners() - other.corners(), axis=1)
    text = f"corners up to {one.distance(other):.3g} voxels ({corners.max():.3g} mm) apart"
    for name, first, second in (
        ("spacing", one.spacing, other.spacing),
        ("first voxel", one.affine[:3, 3], other.affine[:3, 3]),
    ):
        if not np.allclose(first, second, rtol=1e-9, atol=1e-9):
            text += f"; {name} {_distinct_digits(first, second)} mm"
    return text


def _distinct_digits(first: ArrayLike, second: ArrayLike) -> str:
    """Format two triples of numbers with enough digits to show that they differ."""
    for digits in range(4, 18):
        texts = [
            ", ".join(f"{float(v):.{digits}g}" for v in np.ravel(each)) for each in (first, second)
        ]
        if texts[0] != texts[1]:
            break
    return f"({texts[0]}) against ({texts[1]})"


def _spacing(grid: Grid) -> str:
    return " x ".join(f"{s:.4g}" for s in grid.spacing)


def float_type(low: float, high: float) -> np.dtype:
    """Choose the dtype for computing: float32, or float64 where float32 is too coarse.

    Ours: float32 suffices if its rounding is at most a thousandth of the range.  Around 2^31 its
    numbers are 256 apart.

    Parameters
    ----------
    low, high : float
        The smallest and the largest value.
    """
    reach = max(abs(low), abs(high))
    if not np.isfinite(reach) or reach > 1e30 or low == high:
        return np.dtype(np.float32)
    return np.dtype(
        np.float64 if np.spacing(np.float32(reach)) > 2e-3 * (high - low) else np.float32
    )


def _whole_numbers(values: NDArray, name: str) -> NDArray:
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise InputError(
            f"The labels '{name}' contain {bad} values that are NaN or infinite (of {values.size});"
            " whole numbers were expected.",
            remedy="Give {nan:0} to read them as background, or correct the map.",
        )
    rounded = np.rint(values)
    fractional = int((np.abs(values - rounded) > 1e-3).sum())
    if fractional:
        raise InputError(
            f"The labels '{name}' contain {fractional} values with fractions (of {values.size});"
            " labels are whole numbers. Was this map resampled with linear interpolation? Resample"
            " it with nearest neighbour."
        )
    largest = float(np.abs(rounded).max(initial=0))
    if largest > 2**53:
        raise InputError(
            f"The labels '{name}' go up to {largest:.3g}; values beyond 2^53 are not"
            " exact in float64."
        )
    return rounded.astype(np.int32 if largest < 2**31 else np.int64)


AIR = -1000.0  # HU
DENSER_THAN_AIR = -500.0  # HU; only a CT has values below it
EMPTY_SHARE = 0.5  # of the border voxels that have the background's value in a border of air
SAME = 0.02  # of the image's range: values that count as equal


def looks_like_ct(volume: Volume) -> bool:
    """Whether an image has values that only Hounsfield units reach, below -500."""
    return not volume.is_labels and bool(volume.values.min() < DENSER_THAN_AIR)


def fill_value(volume: Volume, fill: float | str = "auto") -> float:
    """The value of a warped image where its original has no voxels.

    Parameters
    ----------
    volume : Volume
        The original image; labels are always filled with 0.
    fill : {"auto", "minimum", "air"} or float
        auto: the `background` if most of the six border faces have it (within 2 % of the range), as
        in a head surrounded by air; else, as in an image cropped to the inside of a body, -1000 for
        a CT and the minimum for other images.  minimum: of the finite values.  air: -1000, HU.
    """
    if volume.is_labels:
        return 0.0
    if isinstance(fill, int | float):
        return float(fill)
    if fill == "air":
        return AIR
    finite = volume.values[np.isfinite(volume.values)]
    low = float(finite.min()) if finite.size else 0.0
    if fill == "minimum" or not finite.size:
        return low
    around, faces = background(volume), np.concatenate(_faces(volume.values))
    tolerance = SAME * (float(finite.max()) - low)
    if np.mean(np.abs(faces - around) <= tolerance) >= EMPTY_SHARE:
        return around
    return AIR if looks_like_ct(volume) else low


def background(volume: Volume) -> float:
    """Estimate the background value of a volume.

    Ours: the median of the six border faces: 0 for a skull-stripped brain, air for a CT surrounded
    by air, and the tissue at the border of an image cropped to the inside of a body.  0 for labels.
    """
    if volume.is_labels:
        return 0.0
    return float(np.median(np.concatenate(_faces(volume.values))))


def _faces(v: NDArray) -> list[NDArray]:
    return [v[(slice(None),) * axis + (end,)].ravel() for axis in range(3) for end in (0, -1)]
