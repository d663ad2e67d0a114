"""Tableware, textiles and decoration of the generated catalogue, one drawing function a type."""

from __future__ import annotations

from data_prep.shop.pen import Part, Pen, Style, product_type


@product_type(
    "vase",
    "flower vase",
    "urn",
    family="home",
    place="living room",
    materials="ceramic glass metal rattan",
    patterned=0.5,
    body=("bottle shape", "bulb shape", "cylinder", "amphora"),
    filling=("empty", "with twigs"),
)
def vase(pen: Pen, style: Style) -> None:
    if style["filling"] == "with twigs":
        twigs: tuple[tuple[tuple[float, float], Part], ...] = (
            ((0.30, 0.08), "second"),
            ((0.50, 0.07), "light"),
            ((0.70, 0.10), "second"),
        )
        for tip, part in twigs:
            pen.line([(0.50, 0.42), tip], 0.018, "dark")
            pen.oval(tip[0] - 0.05, tip[1] - 0.03, tip[0] + 0.05, tip[1] + 0.07, part)
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
    "planter",
    "plant pot",
    "flower pot",
    family="home",
    place="balcony garden",
    materials="ceramic metal rattan plastic wood",
    patterned=0.5,
    plant=("leafy plant", "cactus", "trailing plant"),
    stand=("on legs", "with saucer"),
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
            pen.blob(
                [
                    (0.50, 0.58),
                    ((tip + 0.5) / 2 - 0.07, (y + 0.5) / 2 - droop / 2),
                    (tip, y),
                    ((tip + 0.5) / 2 + 0.07, (y + 0.5) / 2 - droop / 2 + 0.02),
                ],
                "leaf",
                (k % 3) - 1,
            )
    if style["stand"] == "on legs":
        pen.line([(0.32, 0.60), (0.27, 0.95)], 0.03, "trim", both=True)
    else:
        pen.oval(0.24, 0.85, 0.76, 0.95, "second", -1)
    pen.poly([(0.27, 0.56), (0.73, 0.56), (0.66, 0.89), (0.34, 0.89)])
    pen.rect(0.24, 0.52, 0.76, 0.61, "second", 0, 0.02)


@product_type(
    "cushion",
    "throw pillow",
    "scatter pillow",
    family="home",
    place="living room",
    materials="linen velvet cotton silk wool",
    patterned=0.85,
    shape=("square", "round", "lumbar"),
    trim=("tasselled", "piped edge", "plain edge"),
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
    outline = [
        (0.10, y),
        (0.50, y + 0.05),
        (0.90, y),
        (0.86, 0.50),
        (0.90, 1 - y),
        (0.50, 0.95 - y),
        (0.10, 1 - y),
        (0.14, 0.50),
    ]
    if style["trim"] == "piped edge":
        pen.blob(
            [(0.5 + (px - 0.5) * 1.06, 0.5 + (py - 0.5) * 1.08) for px, py in outline], "second", -1
        )
    pen.blob(outline)


@product_type(
    "curtain",
    "drape",
    "window panel",
    family="home",
    place="bedroom",
    materials="linen velvet cotton silk",
    patterned=0.6,
    style=("tied back", "straight"),
    rod=("wooden rod", "metal rod"),
)
def curtain(pen: Pen, style: Style) -> None:
    tied = style["style"] == "tied back"
    if tied:
        pen.poly(
            [(0.10, 0.12), (0.48, 0.12), (0.44, 0.36), (0.24, 0.60), (0.30, 0.94), (0.10, 0.94)],
            both=True,
        )
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
    pen.oval(0.03, 0.05, 0.10, 0.13, "trim", 1, both=True)


@product_type(
    "mug",
    "coffee cup",
    "teacup",
    family="home",
    place="kitchen",
    materials="ceramic metal glass",
    patterned=0.6,
    body=("straight sides", "rounded bowl", "tapered"),
    handle=("round handle", "square handle"),
)
def mug(pen: Pen, style: Style) -> None:
    if style["handle"] == "round handle":
        pen.arc(0.56, 0.34, 0.93, 0.72, 0, 360, 0.065, "second")
    else:
        pen.line([(0.62, 0.38), (0.87, 0.38), (0.87, 0.66), (0.60, 0.66)], 0.065, "second")
    if style["body"] == "straight sides":
        pen.rect(0.14, 0.24, 0.70, 0.86, "main", 0, 0.03)
    elif style["body"] == "rounded bowl":
        pen.blob(
            [(0.13, 0.26), (0.71, 0.26), (0.70, 0.60), (0.56, 0.86), (0.28, 0.86), (0.14, 0.60)]
        )
    else:
        pen.poly([(0.12, 0.25), (0.72, 0.25), (0.60, 0.86), (0.24, 0.86)])
    pen.oval(0.13, 0.18, 0.71, 0.32, tone=1)
    pen.oval(0.17, 0.205, 0.67, 0.30, "dark")


@product_type(
    "teapot",
    "kettle",
    "tea kettle",
    family="home",
    place="kitchen",
    materials="ceramic metal glass",
    patterned=0.5,
    handle=("side handle", "top handle"),
    spout=("curved spout", "short spout"),
)
def teapot(pen: Pen, style: Style) -> None:
    if style["handle"] == "side handle":
        pen.arc(0.04, 0.38, 0.36, 0.76, 60, 300, 0.05, "second", -1)
    else:
        pen.arc(0.24, 0.10, 0.76, 0.70, 180, 360, 0.05, "second", -1)
    if style["spout"] == "curved spout":
        pen.blob(
            [(0.68, 0.62), (0.82, 0.54), (0.86, 0.36), (0.96, 0.34), (0.90, 0.58), (0.70, 0.78)],
            tone=-1,
        )
    else:
        pen.poly([(0.68, 0.44), (0.90, 0.36), (0.93, 0.44), (0.72, 0.62)], tone=-1)
    pen.oval(0.20, 0.34, 0.78, 0.88)
    pen.rect(0.34, 0.82, 0.64, 0.91, tone=-1)
    pen.pie(0.34, 0.30, 0.64, 0.50, 180, 360, "second")
    pen.oval(0.45, 0.23, 0.53, 0.32, "second", 1)


@product_type(
    "bowl",
    "serving bowl",
    "dish",
    family="home",
    place="dining room",
    materials="ceramic wood glass metal",
    patterned=0.5,
    depth=("deep", "shallow"),
    foot=("footed", "flat base"),
    contents=("empty", "fruit"),
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
    "basket",
    "storage basket",
    "hamper",
    family="home",
    place="laundry room",
    materials="rattan cotton metal plastic",
    patterned=0.2,
    handles=("side handles", "hoop handle"),
    lid=("open", "lidded"),
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
