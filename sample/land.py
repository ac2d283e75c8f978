"""Made-up farmland.

`Land` is one square of 1280 m with fields, hedges, woods, a river, a road and a hamlet, known at every metre,
with crops that grow and are harvested. What satellites see of it is in views.py.

The same seed gives the same bytes on every machine: numbers that reach an array come from exact operations (+ - * /)
or are rounded first, because the last digit of `exp` or `sin` differs from one processor to the next.
"""

import math
from typing import NamedTuple

import numpy as np

SIZE = 1280  # metres, and cells of the finest grid
SPOT_DAY = 279  # days are counted from 2018-09-24: about 30 June 2019

# What covers a metre of ground. Numbers from FIRST_PARCEL on are parcels, each with a crop of its own.
VERGE, WOOD, HEDGE, WATER, ROAD, TRACK, ROOF, YARD, FIRST_PARCEL = range(9)

# Reflectance x 10000 in B2 B3 B4 B5 B6 B7 B8 B8A B11 B12.
LEAVES = (260, 540, 270, 900, 2700, 3400, 3650, 3850, 1750, 800)
STRAW = (700, 1120, 1480, 1850, 2300, 2550, 2750, 2950, 3000, 2050)
SOIL = (660, 900, 1160, 1400, 1550, 1700, 1850, 2000, 2600, 2150)
FLOWERS = (300, 1250, 1150, 1500, 2500, 3000, 3200, 3350, 1700, 850)
TREES = (190, 370, 200, 560, 1800, 2350, 2550, 2750, 1200, 520)
COVERS = {
    WATER: (380, 430, 340, 260, 200, 180, 160, 140, 70, 40),
    ROAD: (920, 1010, 1080, 1180, 1230, 1290, 1350, 1400, 1650, 1500),
    TRACK: (800, 1050, 1330, 1600, 1800, 1950, 2050, 2150, 2700, 2300),
    ROOF: (1000, 1180, 1420, 1550, 1650, 1750, 1850, 1950, 2050, 1850),
}


class Crop(NamedTuple):
    """A crop, by its number in PASTIS, over the months from September 2018 to December 2019."""

    name: str
    share: float  # how common it is
    vv: float  # radar backscatter in dB when full-grown
    vh: float
    green: np.ndarray  # share of the ground under green leaves in the middle of each month
    straw: np.ndarray  # and under straw


def curve(percent):
    return np.array([int(value) / 100 for value in percent.split()])


# fmt: off
CROPS = {
    1: Crop("Meadow", 44, -10.5, -16.5,
        curve("60 62 58 50 46 48 60 76 86 80 68 58 60 64 58 50"),
        curve("15 12 15 20 22 22 18 10 6 10 20 28 22 16 16 20")),
    2: Crop("Soft winter wheat", 18, -14.5, -20.5,
        curve("12 8 12 22 28 36 58 85 95 64 12 10 12 8 10 20"),
        curve("35 10 0 0 0 0 0 0 3 30 78 55 30 10 0 0")),
    3: Crop("Corn", 16, -9.5, -14.5,
        curve("52 15 5 4 5 6 7 6 12 48 88 92 62 18 6 5"),
        curve("35 55 30 20 15 10 5 0 0 0 0 4 30 50 30 20")),
    4: Crop("Winter barley", 7, -13.5, -19.0,
        curve("12 10 18 28 34 42 66 90 84 26 10 12 18 16 20 28"),
        curve("30 10 0 0 0 0 0 2 12 68 65 45 25 8 0 0")),
    5: Crop("Winter rapeseed", 5, -10.0, -14.0,
        curve("15 36 52 52 46 48 66 80 88 58 12 15 20 36 52 52"),
        curve("25 5 0 0 0 0 0 0 2 25 66 40 20 5 0 0")),
    6: Crop("Spring barley", 2, -13.0, -18.5,
        curve("14 10 12 14 8 8 14 48 88 60 12 12 14 12 14 14"),
        curve("35 20 10 5 0 0 0 0 2 34 74 50 30 20 10 5")),
    9: Crop("Beet", 2, -9.0, -13.5,
        curve("82 70 30 8 6 6 5 6 26 72 90 88 84 70 30 8"),
        curve("5 8 10 5 0 0 0 0 0 0 0 4 6 8 10 5")),
    10: Crop("Winter triticale", 2, -14.0, -20.0,
        curve("12 8 12 24 30 40 62 88 94 60 14 10 12 8 12 22"),
        curve("35 10 0 0 0 0 0 0 4 34 76 52 30 10 0 0")),
    14: Crop("Leguminous fodder", 2, -11.0, -16.5,
        curve("64 58 48 38 34 38 58 82 90 74 80 68 66 58 48 38"),
        curve("10 10 10 10 10 10 8 4 2 8 6 10 10 10 10 10")),
    16: Crop("Orchard", 2, -9.5, -15.0,
        curve("66 52 38 28 26 28 42 66 78 76 70 66 64 52 38 28"),
        curve("10 14 14 14 14 14 12 8 6 8 12 14 12 14 14 14")),
}
# fmt: on
MEADOW, RAPESEED, ORCHARD = 1, 5, 16


def smooth_noise(rng, cell, size=SIZE):
    """Noise between -1 and 1 whose bumps are about `cell` grid cells wide."""
    count = size // cell + 3
    lattice = (rng.random((count, count)) * 2 - 1).astype(np.float32)
    steps = np.arange(size, dtype=np.float64) / cell + rng.random()
    low = steps.astype(np.int64)
    part = (steps - low).astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = lattice[low] * (1 - part)[:, None] + lattice[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def cloudy_noise(rng, cell, size):
    """Smooth noise with finer bumps upon coarser ones."""
    return (
        smooth_noise(rng, cell, size)
        + 0.5 * smooth_noise(rng, max(cell // 2, 1), size)
        + 0.25 * smooth_noise(rng, max(cell // 4, 1), size)
    )


def grain(rng, shape):
    """Noise from cell to cell, between -1 and 1, small values more often."""
    two = rng.integers(0, 256, size=(2, *shape), dtype=np.uint8)
    return (two[0].astype(np.int16) - two[1]).astype(np.float32) / 255


def zigzag(value):
    """A wave of straight lines, period 1, between -1 and 1."""
    return np.abs(value - np.floor(value) - np.float32(0.5)) * 4 - 1


def turn(x, y, angle):
    cos, sin = round(math.cos(angle), 6), round(math.sin(angle), 6)
    return x * np.float32(cos) + y * np.float32(sin), y * np.float32(cos) - x * np.float32(sin)


def partition(rng, x, y, region, count):
    """Cuts regions in two, across their longer side and the largest first, until there are `count`.

    Returns the region of each cell, the distance in metres to the nearest cut, the number of that cut, each region's
    direction in radians, and how many cuts there are. Cuts are straight in (x, y), so borders bend as these
    coordinates do.
    """
    coarse = (slice(2, None, 5), slice(2, None, 5))
    present, region = np.unique(region, return_inverse=True)
    region = region.reshape(x.shape).astype(np.int32)
    total = len(present)
    angle = list(rng.uniform(-0.3, 0.3) + rng.uniform(-0.15, 0.15, total))
    whim = list(rng.uniform(0.5, 1.6, total))  # makes some fields larger than others
    distance = np.full(x.shape, np.float32(1e9))
    cut = np.full(x.shape, -1, dtype=np.int32)
    cuts = 0
    while total < count:
        label = region[coarse].ravel()
        cx, cy = x[coarse].ravel().astype(np.float64), y[coarse].ravel().astype(np.float64)
        area = np.bincount(label, minlength=total)
        mean_x = np.bincount(label, cx, total) / np.maximum(area, 1)
        mean_y = np.bincount(label, cy, total) / np.maximum(area, 1)
        dx, dy = cx - mean_x[label], cy - mean_y[label]
        xx, yy, xy = (np.bincount(label, w, total) / np.maximum(area, 1) for w in (dx * dx, dy * dy, dx * dy))
        wish = area * np.array(whim)
        order = np.argsort(-wish, kind="stable")
        chosen = [r for r in order[: count - total] if wish[r] > 0.45 * wish[order[0]]]
        line = np.zeros((total, 3), dtype=np.float32)  # x and y of the line's normal, and where it lies along it
        target = np.full(total, -1, dtype=np.int32)
        number = np.full(total, -1, dtype=np.int32)
        for r in chosen:
            wide = 0.30 if area[r] > 6000 else 0.10  # 15 hectares: large blocks turn, the fields within them follow
            a = angle[r] + rng.uniform(-wide, wide)
            cos, sin = round(math.cos(a), 6), round(math.sin(a), 6)
            along = xx[r] * cos * cos + 2 * xy[r] * cos * sin + yy[r] * sin * sin
            across = xx[r] * sin * sin - 2 * xy[r] * cos * sin + yy[r] * cos * cos
            nx, ny, spread = (cos, sin, along) if along > across else (-sin, cos, across)
            shift = rng.uniform(-0.45, 0.45) * math.sqrt(spread)
            line[r] = (nx, ny, round(mean_x[r] * nx + mean_y[r] * ny + shift, 3))
            target[r], number[r] = total, cuts
            angle[r] = a
            angle.append(a)
            whim.append(rng.uniform(0.5, 1.6))
            total, cuts = total + 1, cuts + 1
        side = x * line[:, 0][region] + y * line[:, 1][region] - line[:, 2][region]
        here = target[region]
        away = np.where(here >= 0, np.abs(side), np.float32(1e9))
        nearer = away < distance
        distance[nearer] = away[nearer]
        cut[nearer] = number[region][nearer]
        region = np.where((here >= 0) & (side > 0), here, region)
    return region, distance, cut, np.array(angle), cuts


def crowns(rng, mask, cell, height):
    """Round tree crowns where `mask` holds, one in each square of `cell` metres: heights, and the trees' numbers."""
    rows, columns = np.nonzero(mask)
    count = SIZE // cell + 3
    off_row, off_column, radius = rng.random((3, count, count)).astype(np.float32)
    best = np.zeros(len(rows), dtype=np.float32)
    tree = np.zeros(len(rows), dtype=np.int32)
    r0, c0 = rows // cell, columns // cell
    for dr in (0, 1, 2):
        for dc in (0, 1, 2):
            i, j = r0 + dr, c0 + dc
            y = (i - 1 + off_row[i, j]) * cell - rows
            x = (j - 1 + off_column[i, j]) * cell - columns
            wide = (0.5 + 0.45 * radius[i, j]) * cell
            dome = 1 - (x * x + y * y) / (wide * wide)
            tall = (0.55 + 0.45 * radius[i, j]) * np.sqrt(np.maximum(dome, 0)).astype(np.float32)
            higher = tall > best
            best[higher] = tall[higher]
            tree[higher] = (i * count + j)[higher]
    heights = np.zeros(mask.shape, dtype=np.float32)
    numbers = np.zeros(mask.shape, dtype=np.int32)
    heights[rows, columns], numbers[rows, columns] = best * height, tree
    return heights, numbers


class Land:
    """One square of land.

    surface   int16 (1280, 1280)   what covers each metre: a number from VERGE to YARD, or FIRST_PARCEL + parcel
    height    float32 (1280, 1280) metres above the ground: trees and houses
    crops     int list             the class of each parcel, as PASTIS numbers them
    """

    def __init__(self, seed, parcel_count):
        self.seed = seed
        self.rng = rng = np.random.default_rng(seed)
        self.parcel_count = parcel_count
        rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
        bend = 26
        x = columns + bend * smooth_noise(rng, 420) + 5 * smooth_noise(rng, 90)
        y = rows + bend * smooth_noise(rng, 420) + 5 * smooth_noise(rng, 90)

        river = self._curve(rows, columns, rng.uniform(-0.5, 0.5), 130, 300)
        road = self._curve(rows, columns, rng.uniform(0.9, 1.9), 60, 520)
        extra = max(3, round(parcel_count * 0.14))
        sides = (river > 0).astype(np.int32) + 2 * (road > 0)
        region, border, cut, self.angles, cuts = partition(rng, x, y, sides, parcel_count + extra)

        parcel = self._choose_parcels(region, river, road, extra)
        self._plant()
        self._cover(x, y, parcel, region, border, cut, cuts, river, road)
        self._spectra()

    def _curve(self, rows, columns, angle, swing, cell):
        """Signed distance, in metres, to a winding line through the middle of the land."""
        along, across = turn(rows - SIZE / 2, columns - SIZE / 2, angle)
        bends = self.rng.uniform(-1, 1, 2 * SIZE // cell + 8).astype(np.float32)
        position = along / cell + len(bends) // 2
        low = np.floor(position).astype(np.int32)
        part = position - low
        part = part * part * (3 - 2 * part)
        return (
            across
            - np.float32(swing) * (bends[low] * (1 - part) + bends[low + 1] * part)
            - np.float32(self.rng.uniform(-200, 200))
        )

    def _choose_parcels(self, region, river, road, extra):
        """Sets aside `extra` regions for woods and hamlets. Returns each metre's parcel, or -1 in those."""
        rng = self.rng
        total = int(region.max()) + 1
        area = np.maximum(np.bincount(region.ravel(), minlength=total), 1)
        taste = np.bincount(region.ravel(), smooth_noise(rng, 500).ravel(), total) / area
        near_road = np.bincount(region.ravel(), (np.abs(road) < 70).ravel(), total) / area
        hamlets = max(1, extra // 6)
        middling = (area > np.median(area) * 0.35) & (area < np.median(area) * 1.6)
        self.hamlets = np.argsort(-(near_road * middling + 0.35 * taste), kind="stable")[:hamlets]
        taste[self.hamlets] = -9
        self.woods = np.argsort(-taste, kind="stable")[: extra - hamlets]
        number = np.zeros(total, dtype=np.int32)
        number[self.hamlets] = number[self.woods] = -1
        self.fields = np.nonzero(number == 0)[0]
        number[self.fields] = np.arange(len(self.fields))
        return number[region]

    def _plant(self):
        rng = self.rng
        classes = list(CROPS)
        shares = np.array([CROPS[c].share for c in classes], dtype=np.float64)
        bounds = np.cumsum(shares) / shares.sum()
        self.crops = [classes[int(np.searchsorted(bounds, u))] for u in rng.random(self.parcel_count)]

    def _cover(self, x, y, parcel, region, border, cut, cuts, river, road):
        rng = self.rng
        crop = np.array(self.crops)[np.maximum(parcel, 0)]
        surface = np.where(parcel >= 0, parcel + FIRST_PARCEL, VERGE).astype(np.int16)
        wood = np.isin(region, self.woods)
        yard = np.isin(region, self.hamlets)

        # Field borders: hedges mostly, some farm tracks, some a strip of grass.
        kinds = rng.choice(3, size=cuts + 1, p=(0.62, 0.13, 0.25))[cut]
        ragged = 1 + 0.5 * smooth_noise(rng, 23) + 0.3 * smooth_noise(rng, 9)
        surface[border < 1.5] = VERGE
        gaps = smooth_noise(rng, 31) > -0.62
        hedge = (kinds == 0) & (border < 3.6 * ragged) & gaps
        track = (kinds == 1) & (border < 1.6)
        surface[(kinds == 1) & (border < 3.2)] = VERGE

        # River and road, with what grows along them.
        wide = np.float32(rng.uniform(4.5, 7.5)) + 1.2 * smooth_noise(rng, 80)
        bank = np.abs(river) - wide
        surface[bank < 9] = VERGE
        riverside = (bank > 0) & (bank < 5 + 7 * smooth_noise(rng, 60))
        surface[np.abs(road) < 6.5] = VERGE
        alley = (np.abs(np.abs(road) - 7) < 2.5) & (smooth_noise(rng, 120) > 0.05)

        # Trees standing alone in meadows, rows of them in orchards, gardens in the hamlets.
        lone = (crop == MEADOW) & (parcel >= 0)
        far = border > 7
        height = np.zeros((SIZE, SIZE), dtype=np.float32)
        self.tree = np.zeros((SIZE, SIZE), dtype=np.int32)
        thinned = smooth_noise(rng, 70) > 0.42
        for mask, cell, tall in (
            (wood, 9, 15),
            (hedge | riverside | alley, 7, 8),
            (lone & far & thinned & (smooth_noise(rng, 14) > 0.55), 10, 9),
            ((crop == ORCHARD) & (parcel >= 0) & (border > 5) & self._orchard_rows(x, y, region), 6, 4.5),
            (yard & far & (smooth_noise(rng, 26) > 0.35), 8, 7),
        ):
            top, number = crowns(rng, mask, cell, tall)
            higher = top > height
            height[higher], self.tree[higher] = top[higher], number[higher]
        surface[yard & (surface == VERGE)] = YARD
        surface[height > 0.5] = HEDGE
        surface[wood] = WOOD
        surface[bank < 0] = WATER
        surface[track & (height < 0.5)] = TRACK
        surface[np.abs(road) < 2.9] = ROAD
        height[(surface == WATER) | (surface == ROAD) | (surface == TRACK)] = 0

        # Houses, on a loose grid that follows the hamlet's direction.
        for place in self.hamlets:
            u, v = turn(x, y, self.angles[place])
            i, j = np.floor(u / 26).astype(np.int64), np.floor(v / 21).astype(np.int64)
            long, deep, left, up, luck = (rng.random((64, 64)).astype(np.float32)[i % 64, j % 64] for _ in range(5))
            u, v = u - i * 26 - 9 - 6 * left, v - j * 21 - 8 - 4 * up
            house = (
                (np.abs(u) < 4.5 + 5.5 * long)
                & (np.abs(v) < 3 + 2.2 * deep)
                & (luck < 0.62)
                & (region == place)
                & (border > 4)
            )
            house &= (np.abs(road) > 6) & (bank > 8)
            surface[house] = ROOF
            height[house] = (6.5 - np.abs(v) * 0.6)[house]
            drive = (region == place) & (np.abs(v - 8) < 1.5) & (luck < 0.62) & (surface == YARD)
            surface[drive] = TRACK

        self.surface, self.height = surface, height
        self.parcel, self.region, self.x, self.y = parcel, region, x, y
        self.soil = 0.6 * smooth_noise(rng, 160) + 0.4 * smooth_noise(rng, 45)

    def _orchard_rows(self, x, y, region):
        row = np.zeros((SIZE, SIZE), dtype=bool)
        for number, crop in enumerate(self.crops):
            if crop == ORCHARD:
                here = region == self.fields[number]
                _, across = turn(x[here], y[here], self.angles[self.fields[number]])
                row[here] = zigzag(across / 7) > -0.1
        return row

    def _spectra(self):
        """What makes parcels of one crop differ from each other."""
        rng = self.rng
        n = FIRST_PARCEL + self.parcel_count
        self.late = rng.uniform(-11, 11, n)  # days
        self.lush = rng.uniform(0.86, 1.06, n)
        self.bright = rng.uniform(0.85, 1.2, n)
        self.tint = rng.uniform(-0.07, 0.07, n)
        self.cut_day = rng.uniform(230, 320, n)  # when a meadow is mown

    def growth(self, day):
        """The share of green leaves and of straw of each surface on a day. Arrays (surfaces,)."""
        middles = np.arange(16) * 30.4 - 8.0  # mid-September 2018 is nine days before the first date
        green = np.zeros(FIRST_PARCEL + self.parcel_count)
        straw = np.zeros_like(green)
        meadow = CROPS[MEADOW]
        green[[VERGE, YARD]] = np.interp(day, middles, meadow.green)
        straw[[VERGE, YARD]] = np.interp(day, middles, meadow.straw)
        for number, crop in enumerate(self.crops):
            s = FIRST_PARCEL + number
            green[s] = np.interp(day - self.late[s], middles, CROPS[crop].green)
            straw[s] = np.interp(day - self.late[s], middles, CROPS[crop].straw)
            green[s] *= self.lush[s]
            since = day - self.cut_day[s]
            if crop == MEADOW and 0 <= since < 35:
                lost = 0.45 * green[s] * (1 - since / 35)
                green[s] -= lost
                straw[s] += 0.6 * lost
        green = np.minimum(green, 1)
        return green, np.minimum(straw, 1 - green)

    def reflectance(self, day):
        """Reflectance x 10000 of each surface on a day. Float32 (surfaces, 10)."""
        green, straw = self.growth(day)
        soil = np.maximum(1 - green - straw, 0)[:, None] * self.bright[:, None] * np.array(SOIL)
        leaves = np.array(LEAVES) * (1 + self.tint[:, None] * np.array((1, 1, 3, 1, 1, 1, 1, 1, 1, 1)))
        table = green[:, None] * leaves + straw[:, None] * np.sqrt(self.bright)[:, None] * np.array(STRAW) + soil
        blooming = max(0.0, 1 - abs(day - 212) / 20)  # late April
        for number, crop in enumerate(self.crops):
            if crop == RAPESEED:
                s = FIRST_PARCEL + number
                table[s] += 0.8 * blooming * (np.array(FLOWERS) - table[s])
        leafy = np.interp(day, (0, 40, 75, 190, 235, 340, 390), (0.95, 0.7, 0.3, 0.3, 1, 1, 0.8))
        bare = np.array((330, 450, 520, 700, 1000, 1150, 1250, 1400, 1500, 900))
        table[WOOD] = leafy * np.array(TREES) + (1 - leafy) * bare
        table[HEDGE] = table[WOOD] * 1.08
        for s, bands in COVERS.items():
            table[s] = bands
        return np.round(table, 2).astype(np.float32)
