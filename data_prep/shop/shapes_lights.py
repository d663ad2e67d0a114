"""Lamps and things for the wall of the generated catalogue, one drawing function a type."""

from __future__ import annotations

import math

from data_prep.shop.pen import Pen, Style, product_type


@product_type(
    "floor lamp",
    "standing lamp",
    family="home",
    place="living room",
    materials="linen metal rattan glass",
    patterned=0.2,
    stand=("tripod", "straight stand", "arched stand"),
    shade=("drum shade", "dome shade"),
)
def floor_lamp(pen: Pen, style: Style) -> None:
    x = 0.50
    if style["stand"] == "tripod":
        for foot in (0.28, 0.50, 0.72):
            pen.line([(0.50, 0.34), (foot, 0.95)], 0.03, "trim")
    elif style["stand"] == "straight stand":
        pen.line([(0.50, 0.30), (0.50, 0.92)], 0.03, "trim")
        pen.oval(0.34, 0.88, 0.66, 0.96, "trim", -1)
    else:
        x = 0.66
        pen.arc(0.28, 0.06, 0.66, 0.60, 180, 350, 0.03, "trim")
        pen.line([(0.29, 0.34), (0.29, 0.92)], 0.03, "trim")
        pen.oval(0.16, 0.88, 0.44, 0.96, "trim", -1)
    if style["shade"] == "drum shade":
        pen.poly([(x - 0.15, 0.08), (x + 0.15, 0.08), (x + 0.20, 0.36), (x - 0.20, 0.36)])
        pen.line([(x - 0.19, 0.345), (x + 0.19, 0.345)], 0.03, "second")
    else:
        pen.pie(x - 0.22, 0.08, x + 0.22, 0.58, 180, 360)
        pen.oval(x - 0.22, 0.30, x + 0.22, 0.37, "light", 1)


@product_type(
    "table lamp",
    "desk lamp",
    "bedside lamp",
    family="home",
    place="bedroom",
    materials="ceramic metal glass wood",
    patterned=0.2,
    base=("gourd base", "column base", "ball base"),
    shade=("cone shade", "drum shade"),
)
def table_lamp(pen: Pen, style: Style) -> None:
    top = 0.32 if style["shade"] == "drum shade" else 0.36
    x = 0.30 if style["shade"] == "drum shade" else 0.16
    if style["base"] == "gourd base":
        pen.oval(0.40, 0.46, 0.60, 0.66)
        pen.oval(0.32, 0.60, 0.68, 0.93)
    elif style["base"] == "column base":
        pen.rect(0.44, 0.46, 0.56, 0.88)
        pen.oval(0.30, 0.84, 0.70, 0.94, tone=-1)
    else:
        pen.oval(0.29, 0.52, 0.71, 0.92)
        pen.rect(0.38, 0.88, 0.62, 0.94, "trim")
    pen.poly([(top, 0.07), (1 - top, 0.07), (1 - x + 0.02, 0.50), (x - 0.02, 0.50)], "second", 1)
    pen.line([(x, 0.49), (1 - x, 0.49)], 0.02, "light", 1)


@product_type(
    "pendant lamp",
    "ceiling light",
    "hanging lamp",
    family="home",
    place="dining room",
    materials="metal glass rattan wood",
    patterned=0.1,
    shade=("bell shade", "globe", "cone shade"),
    cord=("long cord", "short cord"),
)
def pendant_lamp(pen: Pen, style: Style) -> None:
    y = 0.42 if style["cord"] == "long cord" else 0.26
    pen.rect(0.40, 0.04, 0.60, 0.085, "trim", -1)
    pen.line([(0.50, 0.05), (0.50, y + 0.05)], 0.022, "dark")
    if style["shade"] == "globe":
        pen.oval(0.26, y, 0.74, y + 0.48)
        pen.rect(0.43, y - 0.03, 0.57, y + 0.05, "trim", 1)
    elif style["shade"] == "cone shade":
        pen.oval(0.42, y + 0.30, 0.58, y + 0.46, "light", 2)
        pen.poly([(0.45, y), (0.55, y), (0.86, y + 0.36), (0.14, y + 0.36)])
        pen.line([(0.15, y + 0.35), (0.85, y + 0.35)], 0.03, "second")
    else:
        pen.oval(0.42, y + 0.30, 0.58, y + 0.46, "light", 2)
        pen.blob(
            [
                (0.50, y),
                (0.64, y + 0.08),
                (0.70, y + 0.26),
                (0.84, y + 0.39),
                (0.50, y + 0.41),
                (0.16, y + 0.39),
                (0.30, y + 0.26),
                (0.36, y + 0.08),
            ]
        )
        pen.line([(0.18, y + 0.385), (0.82, y + 0.385)], 0.028, "second")


@product_type(
    "candle holder",
    "candlestick",
    "candelabra",
    family="home",
    place="dining room",
    materials="metal wood glass ceramic",
    patterned=0.0,
    candles=("single candle", "three candles"),
    stem=("ringed stem", "slim stem"),
)
def candle_holder(pen: Pen, style: Style) -> None:
    xs = (0.50,) if style["candles"] == "single candle" else (0.24, 0.50, 0.76)
    pen.poly([(0.47, 0.50), (0.53, 0.50), (0.55, 0.90), (0.45, 0.90)])
    if len(xs) == 3:
        pen.arc(0.24, 0.30, 0.76, 0.72, 0, 180, 0.04)
    if style["stem"] == "ringed stem":
        for y in (0.58, 0.70, 0.80):
            pen.oval(0.42, y, 0.58, y + 0.07, "second")
    pen.oval(0.28, 0.86, 0.72, 0.95, tone=-1)
    for x in xs:
        pen.rect(x - 0.04, 0.20, x + 0.04, 0.48, "light")
        pen.blob([(x, 0.06), (x + 0.03, 0.15), (x, 0.20), (x - 0.03, 0.15)], "glow")
        pen.poly([(x - 0.08, 0.46), (x + 0.08, 0.46), (x + 0.05, 0.54), (x - 0.05, 0.54)])


@product_type(
    "mirror",
    "wall mirror",
    "looking glass",
    family="home",
    place="hallway",
    materials="metal wood rattan plastic",
    patterned=0.0,
    shape=("round", "arched", "rectangular", "sunburst"),
    frame=("thin frame", "thick frame"),
)
def mirror(pen: Pen, style: Style) -> None:
    t = 0.05 if style["frame"] == "thin frame" else 0.10
    if style["shape"] == "sunburst":
        for k in range(18):
            a, r = math.tau * k / 18, 0.44 if k % 2 else 0.36
            pen.line([(0.5, 0.5), (0.5 + r * math.cos(a), 0.5 + r * math.sin(a))], 0.04, tone=k % 2)
    if style["shape"] in ("round", "sunburst"):
        r = 0.24 if style["shape"] == "sunburst" else 0.41
        pen.oval(0.5 - r, 0.5 - r, 0.5 + r, 0.5 + r)
        pen.oval(0.5 - r + t, 0.5 - r + t, 0.5 + r - t, 0.5 + r - t, "light")
    elif style["shape"] == "arched":
        pen.pie(0.22, 0.06, 0.78, 0.66, 180, 360)
        pen.rect(0.22, 0.35, 0.78, 0.94)
        pen.pie(0.22 + t, 0.06 + t, 0.78 - t, 0.66, 180, 360, "light")
        pen.rect(0.22 + t, 0.36, 0.78 - t, 0.94 - t, "light")
    else:
        pen.rect(0.20, 0.07, 0.80, 0.93)
        pen.rect(0.20 + t, 0.07 + t, 0.80 - t, 0.93 - t, "light")
    pen.line([(0.40, 0.56), (0.56, 0.38)], 0.035, "light", 2)
    pen.line([(0.46, 0.60), (0.60, 0.44)], 0.02, "light", 2)


@product_type(
    "clock",
    "wall clock",
    "timepiece",
    family="home",
    place="kitchen",
    materials="wood metal plastic",
    patterned=0.0,
    shape=("round", "square", "octagonal"),
    face=("white face", "coloured face"),
    marks=("bar marks", "dot marks"),
)
def clock(pen: Pen, style: Style) -> None:
    if style["shape"] == "round":
        pen.oval(0.08, 0.08, 0.92, 0.92)
    elif style["shape"] == "square":
        pen.rect(0.11, 0.11, 0.89, 0.89, "main", 0, 0.05)
    else:
        corners = [math.tau * (k + 0.5) / 8 for k in range(8)]
        pen.poly([(0.5 + 0.45 * math.cos(a), 0.5 + 0.45 * math.sin(a)) for a in corners])
    pen.oval(0.18, 0.18, 0.82, 0.82, "light" if style["face"] == "white face" else "second", 1)
    for k in range(12):
        a = math.tau * k / 12
        x, y = 0.5 + 0.26 * math.cos(a), 0.5 + 0.26 * math.sin(a)
        if style["marks"] == "dot marks":
            pen.oval(x - 0.02, y - 0.02, x + 0.02, y + 0.02, "dark")
        else:
            pen.line([(x, y), (0.5 + 0.85 * (x - 0.5), 0.5 + 0.85 * (y - 0.5))], 0.022, "dark")
    pen.line([(0.50, 0.52), (0.37, 0.40)], 0.04, "dark")
    pen.line([(0.50, 0.50), (0.63, 0.30)], 0.03, "dark")


@product_type(
    "picture frame",
    "photo frame",
    "wall art",
    family="home",
    place="hallway",
    materials="wood metal plastic",
    patterned=0.0,
    format=("portrait", "landscape"),
    mat=("wide mat", "no mat"),
    art=("landscape art", "abstract art"),
)
def picture_frame(pen: Pen, style: Style) -> None:
    w, h = (0.33, 0.43) if style["format"] == "portrait" else (0.43, 0.33)
    pen.rect(0.5 - w, 0.5 - h, 0.5 + w, 0.5 + h)
    t = 0.06
    pen.rect(0.5 - w + t, 0.5 - h + t, 0.5 + w - t, 0.5 + h - t, "light", 1)
    t = 0.14 if style["mat"] == "wide mat" else 0.07
    x0, y0, x1, y1 = 0.5 - w + t, 0.5 - h + t, 0.5 + w - t, 0.5 + h - t
    pen.rect(x0, y0, x1, y1, "second", 1)
    if style["art"] == "landscape art":
        pen.poly(
            [(x0, y1), (x0, 0.58), (0.42, 0.44), (0.52, 0.56), (0.60, 0.48), (x1, 0.60), (x1, y1)],
            "leaf",
        )
        pen.oval(x1 - 0.14, y0 + 0.04, x1 - 0.05, y0 + 0.13, "glow")
    else:
        pen.oval(x0 + 0.03, y0 + 0.05, 0.58, 0.56, "dark")
        pen.poly([(0.44, y1), (x1, y1), (x1, 0.44)], "glow")
