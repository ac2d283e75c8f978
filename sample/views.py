"""The land of land.py as satellites and annotators see it: arrays of the types and shapes of PASTIS-HD."""

import math

import numpy as np

from land import (
    CROPS,
    FIRST_PARCEL,
    HEDGE,
    MEADOW,
    ORCHARD,
    ROAD,
    ROOF,
    SIZE,
    SPOT_DAY,
    TRACK,
    VERGE,
    WATER,
    WOOD,
    YARD,
    cloudy_noise,
    grain,
    smooth_noise,
    zigzag,
)

SUN = (0.86, 0.50)  # towards the sun in (rows, columns): a late summer morning, so that shadows fall to the upper left
SUN_SLOPE = 1.25  # metres down for each metre along a ray of sunlight


def sample_points(land, pixels):
    """The surfaces at 16 points of each pixel of a coarser grid. Int16 (16, pixels, pixels)."""
    step = SIZE // pixels
    at = [step // 8 + k * step // 4 for k in range(4)]
    return np.stack([land.surface[r::step, c::step] for r in at for c in at])


def sentinel2(land, days, pixels):
    """Int16 (dates, 10, pixels, pixels): reflectance x 10000, some dates under clouds."""
    rng = np.random.default_rng((land.seed, 2))
    samples = sample_points(land, pixels)
    step = SIZE // pixels
    soil = land.soil[step // 2 :: step, step // 2 :: step]
    out = np.empty((len(days), 10, pixels, pixels), dtype=np.int16)
    for k, day in enumerate(days):
        table = land.reflectance(day)
        image = np.zeros((pixels, pixels, 10), dtype=np.float32)
        for layer in samples:
            image += table[layer]
        image = image.transpose(2, 0, 1) / 16
        vigour = np.array((-1, -0.4, -1.2, -0.4, 0.7, 0.8, 0.8, 0.8, -0.6, -1), dtype=np.float32)
        image *= 1 + 0.09 * soil * vigour[:, None, None]
        haze = np.float32(rng.uniform(0, 90))
        image += haze * np.array((1, 0.7, 0.5, 0.4, 0.2, 0.2, 0.1, 0.1, 0, 0), dtype=np.float32)[:, None, None]
        image *= 1 + 0.035 * grain(rng, image.shape)
        image += 25 * grain(rng, image.shape)
        sky = rng.uniform(-2.6, 0.6 if 215 < day < 340 else 1.2)
        shape = cloudy_noise(rng, max(pixels * 2 // 5, 4), pixels)
        if abs(day - SPOT_DAY) > 5:
            cloud = np.clip((shape + np.float32(sky)) * 0.9, 0, 1)
            shade = moved(cloud, pixels // 10, pixels // 16) * (1 - cloud)
            image *= 1 - 0.5 * shade
            white = np.array((5200, 5100, 5200, 5400, 5600, 5700, 5800, 5900, 3600, 2800), dtype=np.float32)
            image += cloud * (white[:, None, None] * (1 + 0.18 * shape) - image)
        out[k] = np.clip(image, 1, 15000).astype(np.int16)
    return out


def sentinel1(land, days, pixels, orbit):
    """Float16 (dates, 3, pixels, pixels): VV, VH, VV - VH in dB, with speckle. Orbit 0 is ascending, 1 descending."""
    rng = np.random.default_rng((land.seed, 1, orbit))
    step = SIZE // pixels
    surface = land.surface[step // 2 :: step, step // 2 :: step]
    full = np.zeros((2, FIRST_PARCEL + land.parcel_count))
    crops = [CROPS[c] for c in land.crops]
    full[0] = [CROPS[MEADOW].vv] * FIRST_PARCEL + [crop.vv for crop in crops]
    full[1] = [CROPS[MEADOW].vh] * FIRST_PARCEL + [crop.vh for crop in crops]
    fixed = {
        WOOD: (-8.0, -13.8),
        HEDGE: (-8.5, -14.5),
        WATER: (-18, -25),
        ROAD: (-15, -22),
        TRACK: (-13, -20),
        ROOF: (-3, -10),
    }
    rough = rng.uniform(-1, 1, full.shape[1])
    speckle = speckle_table(4)
    out = np.empty((len(days), 3, pixels, pixels), dtype=np.float16)
    for k, day in enumerate(days):
        green, _ = land.growth(day)
        wet = rng.uniform(-1.2, 1.2)
        for polarisation, bare in ((0, -10.8), (1, -18.6)):
            level = bare + rough + wet * (1 - green) + green * (full[polarisation] - bare) - 0.7 * orbit
            for s, values in fixed.items():
                level[s] = values[polarisation]
            draw = rng.integers(0, len(speckle), size=(pixels, pixels), dtype=np.uint16)
            out[k, polarisation] = np.round(level, 3).astype(np.float32)[surface] + speckle[draw]
        out[k, 2] = out[k, 0] - out[k, 1]
    return out


def spot(land, pixels):
    """Uint8 (3, pixels, pixels): red, green, blue of an early summer day."""
    rng = np.random.default_rng((land.seed, 6))
    image = land.reflectance(SPOT_DAY)[:, [2, 1, 0]].T[:, land.surface]
    field = (land.surface >= FIRST_PARCEL) | (land.surface == VERGE) | (land.surface == YARD)

    # Fields: patches of better and worse soil, and the lines that machines leave.
    patchy = 0.5 * land.soil + 0.35 * smooth_noise(rng, 28) + 0.25 * smooth_noise(rng, 9) + 0.2 * smooth_noise(rng, 3)
    lines = machine_lines(land, rng)
    change = np.stack([0.34 * patchy + lines, 0.17 * patchy + lines, 0.24 * patchy + lines])
    image *= 1 + np.where(field, change, 0)

    # Trees and roofs: the side towards the sun is bright, the other dark; every tree has its own green.
    trees = (land.surface == WOOD) | (land.surface == HEDGE)
    slope = land.height - moved(land.height, 1, 1)
    lit = np.clip(0.95 + 0.22 * slope, 0.5, 1.7) * (0.75 + 0.03 * np.minimum(land.height, 15))
    own = rng.uniform(0.72, 1.45, 4096).astype(np.float32)[land.tree % 4096]
    image *= np.where(trees, lit * own, 1)
    roof = land.surface == ROOF
    image *= np.where(roof, np.clip(1 + 0.35 * slope, 0.6, 1.35), 1)
    image *= np.where(land.surface == WATER, 0.85 + 0.15 * smooth_noise(rng, 12), 1)

    shadow = np.zeros((SIZE, SIZE), dtype=bool)
    for s in range(1, 12):
        shadow |= moved(land.height, round(SUN[0] * s), round(SUN[1] * s)) - SUN_SLOPE * s > land.height
    image *= np.where(shadow, np.array((0.44, 0.48, 0.58), dtype=np.float32)[:, None, None], 1)

    image *= 1 + 0.06 * grain(rng, (SIZE, SIZE))
    image = soften(image)
    step = SIZE // pixels
    if step > 1:
        image = sum(image[:, r::step, c::step] for r in range(step) for c in range(step)) / (step * step)
    scale = np.array([min(255, round(255 * (max(v - 60, 0) / 1950) ** 0.72)) for v in range(4096)], dtype=np.uint8)
    return scale[np.clip(image, 0, 4095).astype(np.int16)]


def machine_lines(land, rng):
    """Relative brightness of sowing rows, tramlines and mown swaths, each field in its own direction."""
    fields = land.fields
    angle = land.angles.copy()
    cos = np.array([round(math.cos(a), 6) for a in angle], dtype=np.float32)[land.region]
    sin = np.array([round(math.sin(a), 6) for a in angle], dtype=np.float32)[land.region]
    along, across = land.x * cos + land.y * sin, land.y * cos - land.x * sin
    flip = (rng.random(len(angle)) < 0.3)[land.region]
    t = np.where(flip, along, across)
    weak = np.full(len(angle), 0.012)
    strong = np.zeros(len(angle))
    period = rng.uniform(5, 9, len(angle))
    for number, crop in enumerate(land.crops):
        mown = crop == MEADOW and 0 <= SPOT_DAY - land.cut_day[FIRST_PARCEL + number] < 25
        weak[fields[number]] = 0.07 if mown else 0.008 if crop == MEADOW else rng.uniform(0.015, 0.05)
        strong[fields[number]] = 0 if crop in (MEADOW, ORCHARD) else rng.uniform(0.04, 0.12)
    weak, strong, period = (v.astype(np.float32)[land.region] for v in (weak, strong, period))
    return weak * zigzag(t / period) - strong * (np.abs(zigzag(t / 24)) > 0.93)


def annotations(land, pixels):
    """What the labels of PASTIS say of this land: a dictionary with `target`, `parcels`, `instances`, `heatmap`."""
    samples = np.sort(sample_points(land, pixels), axis=0)
    # The surface that most of a pixel's points share; sorted, equal ones stand beside each other.
    run = np.ones(samples.shape[1:], dtype=np.uint8)
    best, count = samples[0].copy(), run.copy()
    for previous, layer in zip(samples[:-1], samples[1:], strict=True):
        run = np.where(layer == previous, run + 1, 1).astype(np.uint8)
        longer = run > count
        best[longer], count[longer] = layer[longer], run[longer]
    parcel = np.where(best >= FIRST_PARCEL, best - FIRST_PARCEL, -1).astype(np.int64)
    keep_every_parcel(land, parcel, samples)

    inside = parcel >= 0
    crop = np.array(land.crops, dtype=np.uint8)[np.maximum(parcel, 0)]
    border = np.zeros_like(inside)
    beside, below = parcel[:, 1:] != parcel[:, :-1], parcel[1:] != parcel[:-1]
    border[:, 1:] |= beside
    border[:, :-1] |= beside
    border[1:] |= below
    border[:-1] |= below
    target = np.stack([np.where(inside, crop, 0), (border & inside), np.where(inside, count, 0)]).astype(np.uint8)
    names = 1_000_000 + np.sort(
        np.random.default_rng((land.seed, 3)).choice(8_000_000, land.parcel_count, replace=False)
    ).astype(np.int64)
    return {
        "target": target,
        "parcels": np.where(inside, names[np.maximum(parcel, 0)], 0),
        "instances": parcel + 1,
        "heatmap": heatmap(parcel, land.parcel_count),
    }


def keep_every_parcel(land, parcel, samples):
    """Gives a parcel that is nowhere the largest the one pixel where most of it lies."""
    for number in range(land.parcel_count):
        if not (parcel == number).any():
            share = (samples == number + FIRST_PARCEL).sum(axis=0)
            alone = np.bincount(parcel[parcel >= 0], minlength=land.parcel_count) < 2
            share = np.where((parcel >= 0) & alone[np.maximum(parcel, 0)], -1, share)
            parcel.ravel()[share.argmax()] = number


def heatmap(parcel, count):
    """A bump for each parcel: 1 at its middle, falling off with its width and height. Float64."""
    rows, columns = np.mgrid[0 : parcel.shape[0], 0 : parcel.shape[1]].astype(np.float64)
    heat = np.zeros(parcel.shape)
    for number in range(count):
        r, c = np.nonzero(parcel == number)
        middle, spread = (
            ((r.min() + r.max()) // 2, (c.min() + c.max()) // 2),
            (np.ptp(r) / 5 + 0.7, np.ptp(c) / 5 + 0.7),
        )
        bump = ((rows - middle[0]) / spread[0]) ** 2 + ((columns - middle[1]) / spread[1]) ** 2
        heat = np.maximum(heat, np.exp(-bump / 2))
    return np.round(heat, 6)


def moved(image, rows, columns):
    """The image moved up and to the left; its last row and column fill what comes free."""
    return np.pad(image[rows:, columns:], ((0, rows), (0, columns)), mode="edge")


def soften(image):
    """The blur of a real instrument: every pixel takes a little of its neighbours."""
    wide = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    wide = 0.5 * wide[:, 1:-1] + 0.25 * (wide[:, :-2] + wide[:, 2:])
    return 0.5 * wide[:, :, 1:-1] + 0.25 * (wide[:, :, :-2] + wide[:, :, 2:])


def speckle_table(looks):
    """1024 equally likely values (dB) of the speckle of a radar image of so many looks."""

    def share_below(x):
        x *= looks
        return 1 - math.exp(-x) * sum(x**k / math.factorial(k) for k in range(looks))

    values = []
    for k in range(1024):
        low, high = 0.0, 10.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if share_below(middle) < (k + 0.5) / 1024 else (low, middle)
        values.append(round(10 * math.log10(high), 3))
    return np.array(values, dtype=np.float32)
