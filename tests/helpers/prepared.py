"""Data sets written as TFDS prepares them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

tfds = pytest.importorskip("tensorflow_datasets")
array_record = pytest.importorskip("array_record.python.array_record_module")


def png(colour, size=(8, 8), mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def prepare(root, examples, *, features=None, path="tiny/1.0.0", **changes) -> Path:
    """Writes {split: examples} as TFDS does, an example being {feature: value}, images as files."""
    from tensorflow_datasets.core import example_serializer

    folder = Path(root, path)
    folder.mkdir(parents=True)
    name = path.split("/")[0]
    features = tfds.features.FeaturesDict(features or features_of())
    features.save_config(str(folder))
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for split, records in examples.items():
        file = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record.ArrayRecordWriter(str(file), "group_size:1")
        for record in records:
            writer.write(serializer.serialize_example(record))
        writer.close()
    keys = [{"featureKey": "image"}, {"featureKey": "label"}]
    info = {
        "name": name,
        "version": folder.name,
        "fileFormat": "array_record",
        "moduleName": "__main__",
        "splits": [
            {
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(records))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, records in examples.items()
        ],
        "supervisedKeys": {"tuple": {"items": keys}},
    }
    info = {key: value for key, value in (info | changes).items() if value is not None}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def features_of(shape=(8, 8, 3), names=("cat", "ant", "bee"), **more):
    image = tfds.features.Image(shape=shape, encoding_format="png")
    return {"image": image, "label": tfds.features.ClassLabel(names=list(names)), **more}


def examples_of():
    """Class 0 is red, 1 green, 2 blue; each split has one darker shade."""
    colours = np.eye(3, dtype=np.uint8)
    return {
        split: [{"image": png(tuple((colours[i] * shade).tolist())), "label": i} for i in order]
        for split, shade, order in [("train", 250, (2, 0, 1, 0)), ("test", 100, (1, 2))]
    }
