"""The sample in pastis/ is what README.md says of it. Needs numpy: python -m unittest discover sample"""

import hashlib
import io
import json
import os
import tarfile
import unittest

import numpy as np

LAYOUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pastis")
MEMBERS = {
    "DATA_S2/S2_{}.npy": ("int16", (6, 10, 64, 64)),
    "DATA_S1A/S1A_{}.npy": ("float16", (4, 3, 64, 64)),
    "DATA_S1D/S1D_{}.npy": ("float16", (4, 3, 64, 64)),
    "DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_{}.tif": None,
    "ANNOTATIONS/TARGET_{}.npy": ("uint8", (3, 64, 64)),
    "ANNOTATIONS/ParcelIDs_{}.npy": ("int64", (64, 64)),
    "INSTANCE_ANNOTATIONS/INSTANCES_{}.npy": ("int64", (64, 64)),
    "INSTANCE_ANNOTATIONS/HEATMAP_{}.npy": ("float64", (64, 64)),
}


def read(*parts):
    with open(os.path.join(LAYOUT, *parts), "rb") as file:
        return file.read()


def blob(descriptor):
    data = read("blobs", "sha256", descriptor["digest"].removeprefix("sha256:"))
    assert len(data) == descriptor["size"], descriptor
    return data


class Sample(unittest.TestCase):
    def setUp(self):
        (entry,) = json.loads(read("index.json"))["manifests"]
        self.assertEqual(entry["annotations"]["org.opencontainers.image.ref.name"], "sample")
        self.manifest = json.loads(blob(entry))
        self.config = json.loads(blob(self.manifest["config"]))

    def test_every_blob_is_named_by_its_digest(self):
        names = os.listdir(os.path.join(LAYOUT, "blobs", "sha256"))
        self.assertEqual(len(names), 5)
        for name in names:
            self.assertEqual(hashlib.sha256(read("blobs", "sha256", name)).hexdigest(), name)

    def test_the_config_names_the_layers(self):
        layers = [layer["digest"] for layer in self.manifest["layers"]]
        self.assertEqual([patch["layer_digest"] for patch in self.config["patches"]], layers)

    def test_members_have_their_names_types_and_shapes(self):
        for layer, patch in zip(self.manifest["layers"], self.config["patches"], strict=True):
            number = patch["patch_id"]
            self.assertEqual(layer["annotations"]["org.opencontainers.image.title"], f"{number}.tar")
            with tarfile.open(fileobj=io.BytesIO(blob(layer))) as tar:
                self.assertEqual(tar.getnames(), [name.format(number) for name in MEMBERS])
                for member, expected in zip(tar, MEMBERS.values(), strict=True):
                    self.assertIn("mtime", member.pax_headers)
                    data = tar.extractfile(member).read()
                    if expected:
                        array = np.load(io.BytesIO(data))
                        self.assertEqual((array.dtype.name, array.shape), expected, member.name)
                    else:
                        self.assertEqual(data[:4], b"II*\0", "a TIFF file")
                instances = np.load(io.BytesIO(tar.extractfile(f"INSTANCE_ANNOTATIONS/INSTANCES_{number}.npy").read()))
                self.assertEqual(set(np.unique(instances)) - {0}, set(range(1, patch["parcel_count"] + 1)))


if __name__ == "__main__":
    unittest.main()
