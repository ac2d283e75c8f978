#!/usr/bin/env python3
"""Makes look-alikes of the published PASTIS-HD artifacts from made-up land.

    make_sample.py --layout DIR                    three patches at full size (98 MB) as an OCI image layout
    make_sample.py --scale small --layout DIR      the same in small (3.4 MB)
    make_sample.py --patches 48 --folder DIR       48 patches as tar files and config.json, for `oras push`
    make_sample.py --tile t30uxv --folder DIR      one whole tile in one tar of 17 GB

The same arguments give the same bytes. Needs the packages in requirements.txt.
"""

import argparse
import copy
import dataclasses
import datetime
import io
import json
import os
import sys
import tarfile

from layout import Folder, Layout

HERE = os.path.dirname(os.path.abspath(__file__))
FIRST_DATE = datetime.date(2018, 9, 24)
MTIME = 1_700_000_000.123456  # a fraction, as real file times have: it makes tarfile write a PAX header for each member
PATCHES_OF_TILE = {"t30uxv": 531, "t31tfj": 623, "t31tfm": 723, "t32ulu": 556}
PATCH_METRES = 1280


@dataclasses.dataclass
class Scale:
    pixels: int  # of the Sentinel images and the annotations; they always cover 1280 m
    spot: int  # pixels of the SPOT image
    s2: tuple | None = None  # which Sentinel-2 dates to keep; all if None
    s1: int | None = None  # how many Sentinel-1 dates to keep


SCALES = {"full": Scale(128, 1280), "small": Scale(64, 320, s2=(0, 8, 16, 23, 30, 42), s1=4)}


def main():
    args = arguments()
    target = args.layout or args.folder
    unfinished = target.rstrip("/") + ".part"
    for path in (target, unfinished):
        if os.path.exists(path):
            sys.exit(f"make_sample.py: {path} exists already: remove it or name another place")
    os.makedirs(unfinished)
    out = Layout(unfinished, args.tag) if args.layout else Folder(unfinished)
    tiles = read_json(os.path.join(HERE, "metadata", "config-t4.json"))
    make = Maker(SCALES[args.scale], tiles["tiles"], args.distinct, args.seed)
    config = tile_layers(args, tiles, make, out) if args.tile else patch_layers(args, make, out)
    out.finish(json.dumps(config, indent=2).encode())
    os.rename(unfinished, target)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--layout", metavar="DIR", help="write an OCI image layout")
    place.add_argument("--folder", metavar="DIR", help="write tar files and config.json")
    parser.add_argument("--tag", default="sample", help="tag in the layout (default: %(default)s)")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--patches", type=int, metavar="N", help="how many patches (default: 3, or all of a tile)")
    parser.add_argument(
        "--tile", action="append", choices=PATCHES_OF_TILE, help="one layer with all patches of a tile; may be repeated"
    )
    parser.add_argument(
        "--metadata", metavar="FILE", help="a config.json of patches to take ids, geometries and parcel counts from"
    )
    parser.add_argument(
        "--distinct",
        type=int,
        metavar="K",
        help="make only K different lands and repeat them under other ids (default: all different; 8 with --tile)",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.tile and args.metadata:
        parser.error("--metadata is for patches, not for --tile")
    if args.patches is not None and args.patches < 1 or args.distinct is not None and args.distinct < 1:
        parser.error("--patches and --distinct start at 1")
    if args.distinct is None and args.tile:
        args.distinct = 8
    return args


def patch_layers(args, make, out):
    """One layer a patch, as in PASTIS-2433."""
    config = read_json(args.metadata or os.path.join(HERE, "metadata", "config-sample.json"))
    count = args.patches or (len(config["patches"]) if args.metadata else 3)
    known = config["patches"]
    config["patches"] = [
        copy.deepcopy(known[k]) if k < len(known) else another(known, make.tiles[0], k) for k in range(count)
    ]
    for k, patch in enumerate(config["patches"]):
        middle = middle_of(patch["geometry"])
        members = make.members(k, patch["patch_id"], middle, patch["parcel_count"])
        patch["layer_digest"] = add_tar(out, patch["patch_id"] + ".tar", members)
    return config


def tile_layers(args, config, make, out):
    """One layer a tile, as in PASTIS-t4."""
    config["tiles"] = [tile for tile in config["tiles"] if tile["tile"] in args.tile]
    for tile in config["tiles"]:
        members = tile_members(make, tile, args.patches or PATCHES_OF_TILE[tile["tile"]])
        tile["layer_digest"] = add_tar(out, tile["tile"] + ".tar", members)
        make.forget()
    return config


def tile_members(make, tile, count):
    name = tile["tile"]
    first = 10_000 * (list(PATCHES_OF_TILE).index(name) + 1)
    for k in range(count):
        patch = str(first + k)
        for path, data in make.members(k, patch, place_in(tile["bounding_box"], k), 119):
            yield f"{name}/{patch}/{os.path.basename(path)}", data


def add_tar(out, title, members):
    layer = out.add_layer(title, lambda file: write_tar(file, members))
    print(f"{title}  {layer.size / 1e6:.1f} MB  {layer.digest}", flush=True)
    return layer.digest


class Maker:
    """Makes the eight members of a patch; keeps them when lands are to be repeated."""

    def __init__(self, scale, tiles, distinct, seed):
        self.scale, self.tiles, self.distinct, self.seed = scale, tiles, distinct, seed
        self.kept = {}

    def forget(self):
        self.kept = {}

    def members(self, number, patch, middle, parcels):
        """(path, bytes) of each member, in the published order."""
        if self.distinct is None:
            arrays, spot = self._look(patch, parcels)
        else:
            number %= self.distinct
            if number not in self.kept:
                self.kept[number] = self._look(patch, parcels)
            arrays, spot = self.kept[number]
        image = f"DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_{patch}.tif"
        members = [(f"{path}_{patch}.npy", data) for path, data in arrays]
        return members[:3] + [(image, geotiff(spot, middle))] + members[3:]

    def _look(self, patch, parcels):
        """The land as the sensors and the annotators see it."""
        import views
        from land import Land

        land, scale = Land(int(patch) + 1_000_000 * self.seed, parcels), self.scale
        tile = self.tiles[min(max(int(patch) // 10_000 - 1, 0), 3)]
        days = {sensor: dates(tile["temporal_coverage"][sensor]) for sensor in ("S2", "S1A", "S1D")}
        if scale.s2:
            days["S2"] = [days["S2"][k] for k in scale.s2 if k < len(days["S2"])]
        if scale.s1:
            for orbit in ("S1A", "S1D"):
                last = len(days[orbit]) - 1
                days[orbit] = [days[orbit][last * k // (scale.s1 - 1)] for k in range(scale.s1)]
        labels = views.annotations(land, scale.pixels)
        arrays = [
            ("DATA_S2/S2", views.sentinel2(land, days["S2"], scale.pixels)),
            ("DATA_S1A/S1A", views.sentinel1(land, days["S1A"], scale.pixels, 0)),
            ("DATA_S1D/S1D", views.sentinel1(land, days["S1D"], scale.pixels, 1)),
            ("ANNOTATIONS/TARGET", labels["target"]),
            ("ANNOTATIONS/ParcelIDs", labels["parcels"]),
            ("INSTANCE_ANNOTATIONS/INSTANCES", labels["instances"]),
            ("INSTANCE_ANNOTATIONS/HEATMAP", labels["heatmap"]),
        ]
        return [(path, npy(array)) for path, array in arrays], views.spot(land, scale.spot)


def dates(coverage):
    """The days of a series, counted from FIRST_DATE and evenly spaced between its first and its last."""
    first, last = (
        (datetime.datetime.strptime(str(coverage[k]), "%Y%m%d").date() - FIRST_DATE).days for k in ("start", "end")
    )
    steps = coverage["count"] - 1
    return [round(first + (last - first) * k / steps) for k in range(steps + 1)]


def npy(array):
    import numpy

    out = io.BytesIO()
    numpy.save(out, numpy.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()


def geotiff(image, middle):
    """An uncompressed striped GeoTIFF in Lambert-93, north up, whose centre is `middle`."""
    import rasterio
    from rasterio.io import MemoryFile
    from rasterio.transform import from_origin

    count, height, width = image.shape
    metres = PATCH_METRES / width
    place = from_origin(round(middle[0]) - PATCH_METRES // 2, round(middle[1]) + PATCH_METRES // 2, metres, metres)
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), MemoryFile() as file:
        with file.open(
            driver="GTiff",
            width=width,
            height=height,
            count=count,
            dtype="uint8",
            crs="EPSG:2154",
            transform=place,
            photometric="RGB",
            interleave="pixel",
        ) as dataset:
            dataset.write(image)
        return file.read()


def write_tar(out, members):
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, copybufsize=1 << 20) as tar:
        for k, (path, data) in enumerate(members):
            member = tarfile.TarInfo(path)
            member.size, member.mode, member.mtime = len(data), 0o644, round(MTIME + 1.003217 * k, 6)
            tar.addfile(member, io.BytesIO(data))


def middle_of(geometry):
    """The centre of a Polygon's or MultiPolygon's bounding box."""
    points = geometry["coordinates"][0]
    points = points[0] if geometry["type"] == "MultiPolygon" else points
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2


def place_in(box, k):
    """The centre of the k-th square of a grid that starts in the upper left of a tile."""
    step = PATCH_METRES + 20
    columns = int((box["maxx"] - box["minx"]) // step)
    return box["minx"] + (k % columns + 0.5) * step, box["maxy"] - (k // columns + 0.5) * step


def another(known, tile, k):
    """Metadata of one patch more than there are: the next id, elsewhere in the tile, about as many parcels."""
    patch = copy.deepcopy(known[k % len(known)])
    patch["patch_id"] = str(int(known[0]["patch_id"]) + k)
    patch["parcel_count"] = 40 + k * 37 % 120
    old, new = middle_of(patch["geometry"]), place_in(tile["bounding_box"], k)
    patch["geometry"]["coordinates"] = shifted(patch["geometry"]["coordinates"], new[0] - old[0], new[1] - old[1])
    return patch


def shifted(coordinates, dx, dy):
    if isinstance(coordinates[0], (int, float)):
        return [coordinates[0] + dx, coordinates[1] + dy]
    return [shifted(part, dx, dy) for part in coordinates]


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


if __name__ == "__main__":
    main()
