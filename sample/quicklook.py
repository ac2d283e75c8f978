#!/usr/bin/env python3
"""Draws a patch: the clearest early summer day of Sentinel-2 in true colour, and the SPOT image beside it.

    quicklook.py /mnt/pastis/10001 quicklook.png

It reads no more than it draws, which shows on a mounted dataset. Needs the packages in requirements.txt.
"""

import argparse
import glob
import math
import os
import warnings

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning

BLUE, GREEN, RED = 0, 1, 2  # the order of bands in PASTIS: B2 B3 B4 B5 B6 B7 B8 B8A B11 B12
GAP = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patch", help="directory of a patch")
    parser.add_argument("png", help="picture to write")
    parser.add_argument("--date", type=int, metavar="K", help="Sentinel-2 date to draw, counted from 0")
    parser.add_argument(
        "--height", type=int, default=768, help="height of the picture in pixels (default: %(default)s)"
    )
    args = parser.parse_args()

    series = np.load(only(args.patch, "DATA_S2/S2_*.npy"), mmap_mode="r")
    date = clearest(series) if args.date is None else args.date
    left = enlarge(true_colour(series, date), args.height)
    right = spot(only(args.patch, "DATA_SPOT/*/*.tif"), args.height)
    gap = np.full((3, args.height, GAP), 255, dtype=np.uint8)
    write_png(args.png, np.concatenate([left, gap, right], axis=2))
    print(f"{args.png}: Sentinel-2 date {date + 1} of {len(series)}, and SPOT")


def only(patch, pattern):
    found = glob.glob(os.path.join(patch, pattern))
    if len(found) != 1:
        raise SystemExit(f"quicklook.py: {len(found)} files instead of one fit {pattern} in {patch}")
    return found[0]


def clearest(series):
    """The date with the darkest blue among those of June and July: clouds and haze are bright in blue.

    Series run from September to the October after, so that these months lie about two thirds in.
    """
    dates = range(round(len(series) * 0.65), math.ceil(len(series) * 0.80))
    return min(dates, key=lambda k: series[k, BLUE].mean())


def true_colour(series, date):
    image = np.stack([series[date, band] for band in (RED, GREEN, BLUE)])
    bright = np.clip((image - 60) / 1950, 0, 1) ** 0.72
    return (bright * 255).astype(np.uint8)


def enlarge(image, height):
    """To so many pixels high and wide, each a copy of the nearest one."""
    take = np.arange(height) * image.shape[1] // height
    return image[:, take][:, :, take]


def spot(path, height):
    with rasterio.open(path) as dataset:
        finer = dataset.height > height
        return dataset.read(
            out_shape=(3, height, height), resampling=Resampling.average if finer else Resampling.nearest
        )


def write_png(path, image):
    count, height, width = image.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="PNG", width=width, height=height, count=count, dtype="uint8") as picture:
            picture.write(image)


if __name__ == "__main__":
    main()
