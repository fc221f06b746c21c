"""What was read of a data set, what was changed or left out, and why: one list for logs, records and the console."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Finding → what was done, and why.
CHANGED = {
    "boxes_converted": "boxes were converted to pixels (x, y, width, height)",
    "boxes_clipped": "boxes reach over the picture's edge and were cut there",
    "boxes_from_masks": "boxes do not fit their mask, and were taken from it",
    "areas_from_masks": "areas are not positive or do not fit the object, and were measured",
    "segmentations_rewritten": "segmentations are spelt otherwise than COCO's (flat, in pairs, as text) and were read",
    "polygons_converted": "polygons in 0..1 were converted to pixels",
    "polygons_clipped": "polygons reach far outside the picture and were cut at its edge",
    "masks_missing": "objects have a box but no usable mask: regions to ignore, neither wanted nor counted as wrong",
    "crowds_read_as_objects": "crowd regions were read as objects: the file has nothing else, as CVAT writes masks",
    "categories_merged": "categories have the same phrase for the model, and became one",
    "phrases_replaced": "categories are asked for with the phrases of data.prompts",
    "ids_renumbered": "ids are not whole numbers of 64 bits, and were numbered anew",
    "file_names_matched": "file names are spelt otherwise than on the disk, and were matched",
    "sizes_read": "images have no size in the file: it was read from the pictures",
}
DROPPED = {
    "boxes_dropped": "annotations have no usable box",
    "masks_dropped": "annotations have neither a usable mask nor a usable box",
    "degenerate_polygons": "polygons enclose no area inside the picture",
    "entries_not_exhaustive": "pairs of image and phrase are not annotated exhaustively: not asked for",
    "entries_twice": "pairs of image and phrase are listed twice: the first counts",
    "synonyms_dropped": "phrases of data.prompts are there more than once: the first category keeps them",
    "root_categories": "categories only group the others (a project's root): not asked for",
    "images_missing": "images are not there",
    "images_unreadable": "images cannot be read",
}
SHOWN = 5  # names in a line


@dataclass
class Finding:
    """How often something was found, and where first."""

    count: int = 0
    first: str = ""


@dataclass
class DataReport:
    """What was read of one split.

    Attributes:
        layout: the kind of annotation file, in words.
        images, annotations, categories: that are used.
        crowd_regions: of the annotations, those to ignore.
        images_without_annotations: of the images.
        unannotated: phrases of categories without annotations.
        federated: images that say for which categories they are annotated.
        findings: name (of ``CHANGED`` or ``DROPPED``) → what was found.
    """

    layout: str = "COCO"
    images: int = 0
    annotations: int = 0
    categories: int = 0
    crowd_regions: int = 0
    images_without_annotations: int = 0
    unannotated: list[str] = field(default_factory=list)
    federated: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def note(self, name: str, where: str = "", count: int = 1) -> None:
        """Count a finding; ``where`` says which it was, and is kept of the first."""
        finding = self.findings.setdefault(name, Finding())
        finding.count += count
        finding.first = finding.first or where

    @property
    def problems(self) -> dict[str, int]:
        """The counts of what was changed or left out, without zeros."""
        return {name: self.findings[name].count for name in (*CHANGED, *DROPPED) if name in self.findings}

    def summary(self) -> str:
        """One line."""
        line = self._read()
        if self.problems:
            line += "; " + ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in self.problems.items())
        return line

    def lines(self) -> list[str]:
        """What was read, then what was changed and dropped, a line each."""
        found = [f"read: {self._read()}"]
        for title, texts in (("changed", CHANGED), ("dropped", DROPPED)):
            for name, text in texts.items():
                if finding := self.findings.get(name):
                    first = f" (first: {finding.first})" if finding.first else ""
                    found.append(f"{title}: {finding.count} {text}{first}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """For a record: the numbers, and under ``changed`` and ``dropped`` what is not zero."""
        values: dict[str, Any] = {
            "layout": self.layout, "images": self.images, "annotations": self.annotations,
            "categories": self.categories, "crowd_regions": self.crowd_regions,
            "images_without_annotations": self.images_without_annotations,
            "categories_without_annotations": len(self.unannotated),
        }  # fmt: skip
        if self.federated:
            values["federated_images"] = self.federated
        for title, texts in (("changed", CHANGED), ("dropped", DROPPED)):
            found = {name: self.findings[name] for name in texts if name in self.findings}
            if found:
                values[title] = {
                    name: {"count": item.count, "why": texts[name]} | ({"first": item.first} if item.first else {})
                    for name, item in found.items()
                }
        return values

    def _read(self) -> str:
        line = f"{self.images} images, {self.annotations} annotations, {self.categories} categories"
        line += f", {self.crowd_regions} crowd regions"
        line += f", {self.images_without_annotations} images without annotations"
        if self.unannotated:
            more = ", …" if len(self.unannotated) > SHOWN else ""
            names = ", ".join(self.unannotated[:SHOWN]) + more
            line += f", {len(self.unannotated)} categories without annotations ({names})"
        if self.federated:
            line += f", {self.federated} images that are asked only for what they are annotated for"
        return line if self.layout == "COCO" else f"{self.layout}: {line}"
