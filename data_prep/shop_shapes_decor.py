"""Lamps, tableware and decoration of the generated catalogue, one drawing function a type."""

# fmt: off  (outlines of shapes read better as rows of points than one number a line)

from __future__ import annotations

import math

from data_prep.shop_pen import Pen, Style, product_type

POT = "ceramic glass metal rattan wood"


@product_type(
    "floor lamp", "standing lamp", family="home", place="living room", materials="linen metal rattan glass",
    patterned=0.2, stand=("tripod", "straight stand", "arched stand"), shade=("drum shade", "dome shade"),
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
    "table lamp", "desk lamp", "bedside lamp", family="home", place="bedroom", materials="ceramic metal glass wood",
    patterned=0.2, base=("gourd base", "column base", "ball base"), shade=("cone shade", "drum shade"),
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
    "pendant lamp", "ceiling light", "hanging lamp", family="home", place="dining room",
    materials="metal glass rattan wood", patterned=0.1,
    shade=("bell shade", "globe", "cone shade"), cord=("long cord", "short cord"),
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
        pen.blob([(0.50, y), (0.64, y + 0.08), (0.70, y + 0.26), (0.84, y + 0.39), (0.50, y + 0.41),
                  (0.16, y + 0.39), (0.30, y + 0.26), (0.36, y + 0.08)])
        pen.line([(0.18, y + 0.385), (0.82, y + 0.385)], 0.028, "second")


@product_type(
    "mirror", "wall mirror", "looking glass", family="home", place="hallway", materials="metal wood rattan plastic",
    patterned=0.0, shape=("round", "arched", "rectangular", "sunburst"), frame=("thin frame", "thick frame"),
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
    "clock", "wall clock", "timepiece", family="home", place="kitchen", materials="wood metal plastic",
    patterned=0.0, shape=("round", "square", "octagonal"), face=("white face", "coloured face"), marks=("bar marks", "dot marks"),
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
    "vase", "flower vase", "urn", family="home", place="living room", materials="ceramic glass metal rattan",
    patterned=0.5, body=("bottle shape", "bulb shape", "cylinder", "amphora"), filling=("empty", "with twigs"),
)
def vase(pen: Pen, style: Style) -> None:
    if style["filling"] == "with twigs":
        for tip, part in (((0.30, 0.08), "second"), ((0.50, 0.04), "light"), ((0.70, 0.10), "second")):
            pen.line([(0.50, 0.42), tip], 0.018, "dark")
            pen.oval(tip[0] - 0.05, tip[1] - 0.03, tip[0] + 0.05, tip[1] + 0.07, part)  # type: ignore[arg-type]
    half = {
        "bottle shape": [(0.06, 0.26), (0.06, 0.48), (0.22, 0.62), (0.24, 0.84), (0.16, 0.93)],
        "bulb shape": [(0.13, 0.28), (0.09, 0.38), (0.28, 0.56), (0.28, 0.76), (0.13, 0.93)],
        "cylinder": [(0.17, 0.28), (0.16, 0.45), (0.16, 0.65), (0.16, 0.80), (0.16, 0.93)],
        "amphora": [(0.15, 0.26), (0.10, 0.36), (0.26, 0.48), (0.20, 0.72), (0.09, 0.94)],
    }[style["body"]]
    if style["body"] == "amphora":
        pen.arc(0.18, 0.30, 0.44, 0.58, 90, 300, 0.035)
        pen.arc(0.56, 0.30, 0.82, 0.58, -120, 90, 0.035)
    pen.blob([(0.5 + x, y) for x, y in half] + [(0.5 - x, y) for x, y in reversed(half)])
    x, y = half[0]
    pen.oval(0.5 - x, y - 0.025, 0.5 + x, y + 0.03, tone=-2)
    pen.line([(0.5 - half[2][0], half[2][1]), (0.5 + half[2][0], half[2][1])], 0.035, "second")


@product_type(
    "planter", "plant pot", "flower pot", family="home", place="balcony garden", materials="ceramic metal rattan plastic wood",
    patterned=0.5, plant=("leafy plant", "cactus", "trailing plant"), stand=("on legs", "with saucer"),
)
def planter(pen: Pen, style: Style) -> None:
    if style["plant"] == "cactus":
        pen.rect(0.43, 0.10, 0.57, 0.60, "leaf", 0, 0.07)
        pen.line([(0.55, 0.40), (0.70, 0.38), (0.70, 0.24)], 0.08, "leaf", -1)
        pen.line([(0.45, 0.46), (0.31, 0.44), (0.31, 0.32)], 0.08, "leaf", -1)
    else:
        droop = 0.24 if style["plant"] == "trailing plant" else 0.0
        for k, tip in enumerate((0.16, 0.30, 0.50, 0.70, 0.84)):
            y = 0.10 + abs(tip - 0.5) * (0.5 + 2.2 * droop)
            pen.blob([(0.50, 0.58), ((tip + 0.5) / 2 - 0.07, (y + 0.5) / 2 - droop / 2), (tip, y),
                      ((tip + 0.5) / 2 + 0.07, (y + 0.5) / 2 - droop / 2 + 0.02)], "leaf", (k % 3) - 1)
    if style["stand"] == "on legs":
        pen.line([(0.32, 0.60), (0.27, 0.95)], 0.03, "trim", both=True)
    else:
        pen.oval(0.24, 0.85, 0.76, 0.95, "second", -1)
    pen.poly([(0.27, 0.56), (0.73, 0.56), (0.66, 0.89), (0.34, 0.89)])
    pen.rect(0.24, 0.52, 0.76, 0.61, "second", 0, 0.02)


@product_type(
    "cushion", "throw pillow", "scatter pillow", family="home", place="living room", materials="linen velvet cotton silk wool",
    patterned=0.85, shape=("square", "round", "lumbar"), trim=("tasselled", "piped edge", "plain edge"),
)
def cushion(pen: Pen, style: Style) -> None:
    y = 0.26 if style["shape"] == "lumbar" else 0.12
    if style["shape"] == "round":
        if style["trim"] != "plain edge":
            pen.oval(0.06, 0.06, 0.94, 0.94, "second", -1)
        pen.oval(0.09, 0.09, 0.91, 0.91)
        pen.oval(0.46, 0.46, 0.54, 0.54, "second")
        return
    if style["trim"] == "tasselled":
        for cy in (y, 1 - y):
            pen.oval(0.04, cy - 0.06, 0.16, cy + 0.06, "second", 0, both=True)
    outline = [(0.10, y), (0.50, y + 0.05), (0.90, y), (0.86, 0.50), (0.90, 1 - y), (0.50, 0.95 - y),
               (0.10, 1 - y), (0.14, 0.50)]
    if style["trim"] == "piped edge":
        pen.blob([(0.5 + (px - 0.5) * 1.06, 0.5 + (py - 0.5) * 1.08) for px, py in outline], "second", -1)
    pen.blob(outline)


@product_type(
    "curtain", "drape", "window panel", family="home", place="bedroom", materials="linen velvet cotton silk",
    patterned=0.6, style=("tied back", "straight"), rod=("wooden rod", "metal rod"),
)
def curtain(pen: Pen, style: Style) -> None:
    tied = style["style"] == "tied back"
    if tied:
        pen.poly([(0.10, 0.12), (0.48, 0.12), (0.44, 0.36), (0.24, 0.60), (0.30, 0.94), (0.10, 0.94)], both=True)
        pen.rect(0.09, 0.57, 0.28, 0.63, "second", 0, 0.02, both=True)
    else:
        pen.rect(0.10, 0.12, 0.46, 0.94, both=True)
        pen.rect(0.10, 0.86, 0.46, 0.94, "second", both=True)
    for k in range(4):
        x = 0.15 + 0.085 * k
        low = min(x, 0.13 + 0.035 * k) if tied else x
        pen.line([(x, 0.13), (low, 0.58), (low + 0.01, 0.93)], 0.02, tone=-1, both=True)
        pen.line([(x + 0.03, 0.13), (low + 0.02, 0.58)], 0.014, tone=1, both=True)
    pen.rect(0.04, 0.07, 0.96, 0.11, "trim", 0 if style["rod"] == "metal rod" else -1)
    pen.oval(0.015, 0.05, 0.085, 0.13, "trim", 1, both=True)


@product_type(
    "mug", "coffee cup", "teacup", family="home", place="kitchen", materials="ceramic metal glass",
    patterned=0.6, body=("straight sides", "rounded bowl", "tapered"), handle=("round handle", "square handle"),
)
def mug(pen: Pen, style: Style) -> None:
    if style["handle"] == "round handle":
        pen.arc(0.56, 0.34, 0.93, 0.72, 0, 360, 0.065, "second")
    else:
        pen.line([(0.62, 0.38), (0.87, 0.38), (0.87, 0.66), (0.60, 0.66)], 0.065, "second")
    if style["body"] == "straight sides":
        pen.rect(0.14, 0.24, 0.70, 0.86, "main", 0, 0.03)
    elif style["body"] == "rounded bowl":
        pen.blob([(0.13, 0.26), (0.71, 0.26), (0.70, 0.60), (0.56, 0.86), (0.28, 0.86), (0.14, 0.60)])
    else:
        pen.poly([(0.12, 0.25), (0.72, 0.25), (0.60, 0.86), (0.24, 0.86)])
    pen.oval(0.13, 0.18, 0.71, 0.32, tone=1)
    pen.oval(0.17, 0.205, 0.67, 0.30, "dark")


@product_type(
    "teapot", "kettle", "tea kettle", family="home", place="kitchen", materials="ceramic metal glass",
    patterned=0.5, handle=("side handle", "top handle"), spout=("curved spout", "short spout"),
)
def teapot(pen: Pen, style: Style) -> None:
    if style["handle"] == "side handle":
        pen.arc(0.04, 0.38, 0.36, 0.76, 60, 300, 0.05, "second", -1)
    else:
        pen.arc(0.24, 0.10, 0.76, 0.70, 180, 360, 0.05, "second", -1)
    if style["spout"] == "curved spout":
        pen.blob([(0.68, 0.62), (0.82, 0.54), (0.86, 0.36), (0.96, 0.34), (0.90, 0.58), (0.70, 0.78)], tone=-1)
    else:
        pen.poly([(0.68, 0.44), (0.90, 0.36), (0.93, 0.44), (0.72, 0.62)], tone=-1)
    pen.oval(0.20, 0.34, 0.78, 0.88)
    pen.rect(0.34, 0.82, 0.64, 0.91, tone=-1)
    pen.pie(0.34, 0.30, 0.64, 0.50, 180, 360, "second")
    pen.oval(0.45, 0.23, 0.53, 0.32, "second", 1)


@product_type(
    "bowl", "serving bowl", "dish", family="home", place="dining room", materials="ceramic wood glass metal",
    patterned=0.5, depth=("deep", "shallow"), foot=("footed", "flat base"), contents=("empty", "fruit"),
)
def bowl(pen: Pen, style: Style) -> None:
    deep = 0.92 if style["depth"] == "deep" else 0.74
    if style["foot"] == "footed":
        pen.poly([(0.40, 0.55), (0.60, 0.55), (0.66, deep - 0.06), (0.34, deep - 0.06)], tone=-1)
        deep -= 0.10
    pen.pie(0.06, 0.84 - deep, 0.94, deep, 0, 180)
    pen.oval(0.06, 0.34, 0.94, 0.52, tone=1)
    pen.oval(0.11, 0.365, 0.89, 0.50, "second", -1)
    if style["contents"] == "fruit":
        for x, y, tone in ((0.26, 0.26, 0), (0.54, 0.24, 1), (0.40, 0.18, 2)):
            pen.oval(x, y, x + 0.22, y + 0.22, "leaf", tone)


@product_type(
    "candle holder", "candlestick", "candelabra", family="home", place="dining room", materials="metal wood glass ceramic",
    patterned=0.0, candles=("single candle", "three candles"), stem=("ringed stem", "slim stem"),
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
    "picture frame", "photo frame", "wall art", family="home", place="hallway", materials="wood metal plastic",
    patterned=0.0, format=("portrait", "landscape"), mat=("wide mat", "no mat"), art=("landscape art", "abstract art"),
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
        pen.poly([(x0, y1), (x0, 0.58), (0.42, 0.44), (0.52, 0.56), (0.60, 0.48), (x1, 0.60), (x1, y1)], "leaf")
        pen.oval(x1 - 0.14, y0 + 0.04, x1 - 0.05, y0 + 0.13, "glow")
    else:
        pen.oval(x0 + 0.03, y0 + 0.05, 0.58, 0.56, "dark")
        pen.poly([(0.44, y1), (x1, y1), (x1, 0.44)], "glow")


@product_type(
    "basket", "storage basket", "hamper", family="home", place="laundry room", materials="rattan cotton metal plastic",
    patterned=0.2, handles=("side handles", "hoop handle"), lid=("open", "lidded"),
)
def basket(pen: Pen, style: Style) -> None:
    if style["handles"] == "hoop handle":
        pen.arc(0.18, 0.06, 0.82, 0.84, 180, 360, 0.045, "second", -1)
    else:
        pen.arc(0.03, 0.44, 0.27, 0.68, 60, 300, 0.04, "second", -1)
        pen.arc(0.73, 0.44, 0.97, 0.68, -120, 120, 0.04, "second", -1)
    pen.poly([(0.12, 0.42), (0.88, 0.42), (0.78, 0.92), (0.22, 0.92)])
    pen.oval(0.22, 0.87, 0.78, 0.96)
    pen.oval(0.12, 0.34, 0.88, 0.50, "dark")
    if style["lid"] == "lidded":
        pen.oval(0.10, 0.26, 0.90, 0.47, "second", 1)
        pen.oval(0.44, 0.28, 0.56, 0.36, "trim")
    pen.arc(0.12, 0.34, 0.88, 0.50, 0, 180, 0.045, "second")
