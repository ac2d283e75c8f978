"""Writes what `oras push` would push, as an OCI image layout on disk. Standard library only."""

import hashlib
import json
import os
import tempfile

ARTIFACT_TYPE = "application/vnd.whatever.v1+tar"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CREATED = {"org.opencontainers.image.created": "2024-01-01T00:00:00Z"}


class HashingFile:
    """A file being written whose SHA-256 and length are known at the end."""

    def __init__(self, file):
        self.file, self.size, self._hash = file, 0, hashlib.sha256()

    def write(self, data):
        self._hash.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self):
        return self.size

    @property
    def digest(self):
        return "sha256:" + self._hash.hexdigest()


class Folder:
    """Layers and config.json as plain files, ready for `oras push`."""

    def __init__(self, path):
        self.path = path

    def add_layer(self, title, write):
        with open(os.path.join(self.path, title), "wb") as file:
            out = HashingFile(file)
            write(out)
        return out

    def finish(self, config):
        with open(os.path.join(self.path, "config.json"), "wb") as file:
            file.write(config)


class Layout:
    """An OCI image layout with one manifest, under one tag."""

    def __init__(self, path, tag):
        self.path, self.tag, self.layers = path, tag, []
        self.blobs = os.path.join(path, "blobs", "sha256")
        os.makedirs(self.blobs)

    def _add_blob(self, write):
        with tempfile.NamedTemporaryFile(dir=self.blobs, delete=False) as file:
            out = HashingFile(file)
            write(out)
        os.chmod(file.name, 0o644)
        os.rename(file.name, os.path.join(self.blobs, out.digest.removeprefix("sha256:")))
        return out

    def add_layer(self, title, write):
        out = self._add_blob(write)
        annotations = {"org.opencontainers.image.title": title}
        self.layers.append(
            {"mediaType": LAYER_TYPE, "digest": out.digest, "size": out.size, "annotations": annotations}
        )
        return out

    def finish(self, config):
        blob = self._add_blob(lambda out: out.write(config))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": blob.digest, "size": blob.size},
            "layers": self.layers,
            "annotations": CREATED,
        }
        blob = self._add_blob(lambda out: out.write(compact(manifest)))
        entry = {
            "mediaType": MANIFEST_TYPE,
            "digest": blob.digest,
            "size": blob.size,
            "annotations": {**CREATED, "org.opencontainers.image.ref.name": self.tag},
            "artifactType": ARTIFACT_TYPE,
        }
        self._file("oci-layout", {"imageLayoutVersion": "1.0.0"})
        self._file("index.json", {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})

    def _file(self, name, value):
        with open(os.path.join(self.path, name), "wb") as file:
            file.write(compact(value))


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()
