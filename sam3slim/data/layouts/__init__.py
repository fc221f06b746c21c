"""Annotations that are not COCO's JSON, as COCO's dict: YOLO's label files, Pascal VOC's XML, masks as pictures."""
