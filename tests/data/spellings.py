"""One small set as people's tools write it: kind of file → spelling → how the plain set is changed into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sam3slim.data.rle import to_rle

from .plain_set import Change, Content, H, W, rle_of


def each(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Changes every annotation."""

    def apply(content: Content) -> None:
        for item in content["annotations"]:
            change(item)

    return apply


def put(key: str, value: Callable[[Any], Any]) -> Change:
    return each(lambda item: item.update({key: value(item[key])}))


def pairs(polygon: list[float]) -> list[list[float]]:
    return [[polygon[i], polygon[i + 1]] for i in range(0, len(polygon), 2)]


def corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def centred(box: list[float]) -> list[float]:
    return [box[0] + box[2] / 2, box[1] + box[3] / 2, box[2], box[3]]


def unit(box: list[float]) -> list[float]:
    return [box[0] / W, box[1] / H, box[2] / W, box[3] / H]


def text_of_bytes(segmentation: Any) -> dict[str, Any]:
    return {"size": [H, W], "counts": str(to_rle(segmentation, H, W)["counts"])}


def saco(content: Content) -> None:
    """One entry of images for each pair of picture and phrase, boxes and areas in 0..1, category always 1."""
    names = {item["id"]: item["name"] for item in content["categories"]}
    images, annotations = [], []
    for image in content["images"]:
        for category, name in names.items():
            images.append({**image, "id": len(images) + 10_000, "text_input": name, "is_instance_exhaustive": 1})
            for item in content["annotations"]:
                if (item["image_id"], item["category_id"]) == (image["id"], category):
                    annotations.append({
                        "id": len(annotations), "image_id": images[-1]["id"], "category_id": 1, "is_crowd": 0,
                        "bbox": unit(item["bbox"]), "area": item["area"] / H / W,
                        "segmentation": rle_of(item["segmentation"]),
                    })  # fmt: skip
    content |= {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def noun_phrases(content: Content) -> None:
    names = {item["id"]: item["name"] for item in content["categories"]}
    for item in content["annotations"]:
        item |= {"noun_phrase": names[item["category_id"]].title(), "category_id": 1}
    content["categories"] = [{"id": 1, "name": "object"}]


def roboflow(content: Content) -> None:
    for item in content["categories"]:
        item["supercategory"] = "my-project"
    content["categories"].insert(0, {"id": 0, "name": "my-project", "supercategory": "none"})


def two_names(second: str) -> Change:
    def apply(content: Content) -> None:
        content["categories"].append({"id": 9, "name": second})
        for item in content["annotations"][::2]:
            if item["category_id"] in (1, 2) and content["categories"][item["category_id"] - 1]["name"][0] == second[
                0
            ].lower():  # fmt: skip
                item["category_id"] = 9

    return apply


def renamed(ids: Callable[[int], Any], reference: Callable[[int], Any]) -> Change:
    def apply(content: Content) -> None:
        for image in content["images"]:
            image["id"] = ids(image["id"])
        for item in content["annotations"]:
            item["image_id"] = reference(item["image_id"])

    return apply


def categories_renamed(ids: Callable[[int], Any], reference: Callable[[int], Any]) -> Change:
    def apply(content: Content) -> None:
        for item in content["categories"]:
            item["id"] = ids(item["id"])
        for item in content["annotations"]:
            item["category_id"] = reference(item["category_id"])

    return apply


def shuffled(content: Content) -> None:
    content["images"].reverse()
    content["annotations"].reverse()


def sizes(convert: Callable[[int], Any]) -> Change:
    def apply(content: Content) -> None:
        for image in content["images"]:
            image |= {"height": convert(H), "width": convert(W)}

    return apply


def without_sizes(content: Content) -> None:
    for image in content["images"]:
        del image["height"], image["width"]


def lvis_urls(content: Content) -> None:
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/images/{image.pop('file_name')}"


def cvat(content: Content) -> None:
    """CVAT's export of brush masks: run lengths that are all marked as crowds."""
    for item in content["annotations"]:
        item |= {"segmentation": rle_of(item["segmentation"]), "iscrowd": 1, "attributes": {"occluded": False}}


def label_studio(content: Content) -> None:
    """Label Studio's export: ids from 0, Windows' slashes, ``ignore``."""
    for image in content["images"]:
        image |= {"id": image["id"] - 1, "file_name": f"images\\{image['file_name']}"}
    for item in content["annotations"]:
        item |= {
            "image_id": item["image_id"] - 1,
            "id": item["id"] - 1,
            "ignore": 0,
            "category_id": item["category_id"] - 1,
        }
    for item in content["categories"]:
        item["id"] -= 1


# Kind → the spellings that must be read as the plain set. The examples of the issue, then our own siblings.
SPELLINGS: dict[str, dict[str, Change]] = {
    "1 phrases elsewhere": {"SA-Co": saco, "noun phrase per annotation": noun_phrases},
    "2 root category": {"Roboflow": roboflow},
    "3 one phrase": {
        "another case": two_names("Cup"),
        "underscore": two_names("Traffic_Light"),
        "blanks (own)": two_names("  CUP "),
    },
    "4 areas": {
        "negative": put("area", lambda area: -area),
        "zero": put("area", lambda area: 0),
        "in 0..1 (own)": put("area", lambda area: area / H / W),
        "text (own)": put("area", str),
        "NaN (own)": put("area", lambda area: float("nan")),
        "null (own)": put("area", lambda area: None),
        "missing (own)": each(lambda item: item.pop("area")),
        "of the picture (own)": put("area", lambda area: H * W * 100),
    },
    "7 boxes": {
        "in 0..1": put("bbox", unit),
        "x1, y1, x2, y2": put("bbox", corners),
        "zeros": put("bbox", lambda box: [0, 0, 0, 0]),
        "empty": put("bbox", lambda box: []),
        "missing": each(lambda item: item.pop("bbox")),
        "null (own)": put("bbox", lambda box: None),
        "corners in 0..1 (own)": put("bbox", lambda box: unit(corners(box))),
        "YOLO's centres (own)": put("bbox", lambda box: unit(centred(box))),
        "centres in pixels (own)": put("bbox", centred),
        "text (own)": put("bbox", lambda box: [str(value) for value in box]),
        "JSON text (own)": put("bbox", json.dumps),
        "object (own)": put("bbox", lambda b: dict(zip(("x", "y", "width", "height"), b, strict=True))),
        "named corners (own)": put("bbox", lambda b: dict(zip(("x1", "y1", "x2", "y2"), corners(b), strict=True))),
        "detectron2's mode (own)": each(lambda i: i.update(bbox=corners(i["bbox"]), bbox_mode=0)),
        "negative sides (own)": put("bbox", lambda b: [b[0], b[1], -b[2], -b[3]]),
        "far away (own)": put("bbox", lambda b: [b[0] + 1000, b[1], b[2], b[3]]),
    },
    "10 flags and flat polygons": {
        "iscrowd is text": put("iscrowd", str),
        "flat polygons": put("segmentation", lambda polygons: polygons[0]),
        "some are flat": lambda content: content["annotations"][0].update(
            segmentation=content["annotations"][0]["segmentation"][0]
        ),
        "iscrowd is false (own)": put("iscrowd", lambda value: False),
        "iscrowd is text of false (own)": put("iscrowd", lambda value: "False"),
        "iscrowd is 0.0 (own)": put("iscrowd", float),
        "iscrowd is null (own)": put("iscrowd", lambda value: None),
        "iscrowd is missing (own)": each(lambda item: item.pop("iscrowd")),
    },
    "20 ids": {
        "text": renamed(str, str),
        "text in one place": renamed(str, int),
        "floats": renamed(int, float),
        "text of floats (own)": renamed(float, lambda n: f"{n}.0"),
        "names (own)": renamed(lambda n: f"picture-{n}", lambda n: f"picture-{n}"),
        "leading zeros (own)": renamed(lambda n: f"{n:012d}", lambda n: f"{n:012d}"),
        "leading zeros in one place (own)": renamed(lambda n: f"{n:012d}", int),
        "categories as text (own)": categories_renamed(str, int),
        "categories as names (own)": categories_renamed(lambda n: f"c{n}", lambda n: f"c{n}"),
        "above int64": renamed(lambda n: n + 2**64, lambda n: n + 2**64),
        "below int64 (own)": renamed(lambda n: n - 2**70, lambda n: n - 2**70),
        "categories above int64 (own)": categories_renamed(lambda n: n + 2**64, lambda n: n + 2**64),
        "negative (own)": renamed(lambda n: -n, lambda n: -n),
    },
    "20 segmentations": {
        "pairs of points": put("segmentation", lambda polygons: [pairs(polygon) for polygon in polygons]),
        "one list of pairs (own)": put("segmentation", lambda polygons: pairs(polygons[0])),
        "JSON text": put("segmentation", json.dumps),
        "JSON text of polygons (own)": put("segmentation", lambda polygons: [json.dumps(p) for p in polygons]),
        "Python's text (own)": put("segmentation", lambda polygons: str([[1e-9 + v for v in p] for p in polygons])),
        "numbers as text (own)": put("segmentation", lambda polygons: [[str(v) for v in p] for p in polygons]),
        "points as objects (own)": put("segmentation", lambda ps: [{"x": x, "y": y} for x, y in pairs(ps[0])]),
        "VGG's lists (own)": put("segmentation", lambda p: {"all_points_x": p[0][0::2], "all_points_y": p[0][1::2]}),
        "in 0..1 (own)": put("segmentation", lambda ps: [[v / (W, H)[i % 2] for i, v in enumerate(p)] for p in ps]),
        "empty parts beside (own)": put("segmentation", lambda polygons: [[], *polygons]),
        "RLE": put("segmentation", rle_of),
        "RLE, counts as text of bytes": put("segmentation", text_of_bytes),
        "RLE, size as floats (own)": put("segmentation", lambda s: rle_of(s) | {"size": [float(H), float(W)]}),
        "RLE, size as text (own)": put("segmentation", lambda s: rle_of(s) | {"size": [str(H), str(W)]}),
        "RLE without size (own)": put("segmentation", lambda s: {"counts": rle_of(s)["counts"]}),
        "RLE, counts alone (own)": put("segmentation", lambda s: rle_of(s)["counts"]),
        "RLE in a list (own)": put("segmentation", lambda s: [rle_of(s)]),
        "RLE as JSON text (own)": put("segmentation", lambda s: json.dumps(rle_of(s))),
    },
    "whole entries": {
        "in another order (own)": shuffled,
        "sizes as text (own)": sizes(str),
        "sizes as floats (own)": sizes(float),
        "without sizes (own)": without_sizes,
        "LVIS's URLs (own)": lvis_urls,
        "CVAT's masks": cvat,
        "Label Studio": label_studio,
    },
}  # fmt: skip
CASES = [(kind, name) for kind, spellings in SPELLINGS.items() for name in spellings]
