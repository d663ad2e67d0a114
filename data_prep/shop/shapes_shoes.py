"""Shoes, socks and bags of the generated catalogue, one drawing function a type."""

from __future__ import annotations

from data_prep.shop.pen import Pen, Style, product_type


@product_type(
    "sneaker",
    "trainer",
    "running shoe",
    family="wear",
    place="streetwear",
    materials="leather cotton nylon",
    patterned=0.2,
    top=("low top", "high top"),
    sole=("white sole", "black sole"),
    side=("side stripe", "plain side"),
)
def sneaker(pen: Pen, style: Style) -> None:
    top = 0.40 if style["top"] == "low top" else 0.22
    pen.blob(
        [
            (0.10, 0.66),
            (0.10, top),
            (0.20, top - 0.03),
            (0.36, top),
            (0.46, 0.47),
            (0.70, 0.55),
            (0.89, 0.60),
            (0.92, 0.70),
            (0.50, 0.73),
        ]
    )
    pen.oval(0.13, top - 0.05, 0.37, top + 0.04, "dark")
    pen.blob([(0.72, 0.56), (0.90, 0.60), (0.93, 0.70), (0.74, 0.71)], "second")
    if style["side"] == "side stripe":
        pen.poly([(0.26, 0.66), (0.34, 0.66), (0.52, 0.52), (0.47, 0.50)], "second", 1)
    for i in range(4):
        x, y = 0.40 + 0.075 * i, max(top + 0.03, 0.43) + 0.032 * i
        pen.line([(x - 0.03, y + 0.05), (x + 0.05, y)], 0.022, "light")
    pen.rect(0.08, 0.67, 0.94, 0.77, "light" if style["sole"] == "white sole" else "dark", 0, 0.04)


@product_type(
    "boot",
    "ankle boot",
    family="wear",
    place="cosy winter outfits",
    materials="leather velvet plastic",
    patterned=0.1,
    shaft=("ankle high", "knee high"),
    heel=("flat", "block heel"),
    detail=("laced", "buckled"),
)
def boot(pen: Pen, style: Style) -> None:
    top = 0.36 if style["shaft"] == "ankle high" else 0.08
    lift = 0.07 if style["heel"] == "block heel" else 0.02
    pen.poly([(0.22, top), (0.50, top), (0.51, 0.56), (0.22, 0.80)])
    pen.blob(
        [
            (0.22, 0.56),
            (0.48, 0.50),
            (0.62, 0.62),
            (0.84, 0.68),
            (0.88, 0.80),
            (0.55, 0.84),
            (0.22, 0.82),
        ]
    )
    pen.rect(0.21, top, 0.51, top + 0.06, "second")
    pen.poly([(0.21, 0.80), (0.90, 0.80), (0.89, 0.87), (0.42, 0.87), (0.40, 0.84)], "dark")
    pen.rect(0.21, 0.80, 0.39, 0.85 + lift, "dark")
    if style["detail"] == "laced":
        for i in range(4):
            y = max(top + 0.10, 0.38) + 0.055 * i
            pen.line([(0.40, y), (0.52, y + 0.02)], 0.022, "light")
    else:
        pen.line([(0.22, 0.60), (0.54, 0.54)], 0.04, "second", -1)
        pen.rect(0.34, 0.53, 0.42, 0.62, "trim", 2)


@product_type(
    "high heel",
    "pump",
    "stiletto",
    family="wear",
    place="party looks",
    materials="leather silk velvet",
    patterned=0.3,
    toe=("pointed toe", "round toe"),
    strap=("ankle strap", "slip-on"),
    heel=("thin heel", "wide heel"),
)
def high_heel(pen: Pen, style: Style) -> None:
    tip = (0.95, 0.80) if style["toe"] == "pointed toe" else (0.88, 0.74)
    pen.blob(
        [
            (0.14, 0.30),
            (0.24, 0.30),
            (0.36, 0.50),
            (0.60, 0.66),
            tip,
            (0.90, 0.83),
            (0.62, 0.82),
            (0.36, 0.64),
            (0.17, 0.50),
        ]
    )
    pen.blob([(0.26, 0.36), (0.40, 0.54), (0.60, 0.67), (0.42, 0.58)], "dark")
    w = 0.05 if style["heel"] == "thin heel" else 0.12
    pen.poly([(0.13, 0.44), (0.30, 0.56), (0.14 + w, 0.86), (0.13, 0.86)], "second", -1)
    pen.poly([(0.30, 0.60), (0.62, 0.80), (0.92, 0.82), (0.90, 0.86), (0.60, 0.85)], "dark")
    if style["strap"] == "ankle strap":
        pen.arc(0.10, 0.13, 0.42, 0.36, 0, 360, 0.03, "main", -1)


@product_type(
    "sandal",
    "flip-flop",
    "slide",
    family="wear",
    place="beach holiday",
    materials="leather plastic cotton",
    patterned=0.2,
    strap=("thong strap", "cross strap", "double strap"),
    sole=("flat sole", "platform sole"),
)
def sandal(pen: Pen, style: Style) -> None:
    if style["sole"] == "platform sole":
        pen.blob(
            [
                (0.36, 0.17),
                (0.66, 0.16),
                (0.73, 0.42),
                (0.66, 0.90),
                (0.38, 0.90),
                (0.36, 0.62),
                (0.28, 0.38),
            ],
            "dark",
        )
    pen.blob(
        [
            (0.38, 0.11),
            (0.60, 0.09),
            (0.70, 0.34),
            (0.62, 0.60),
            (0.62, 0.84),
            (0.42, 0.84),
            (0.40, 0.62),
            (0.31, 0.36),
        ],
        "second",
    )
    pen.oval(0.43, 0.64, 0.60, 0.83, "second", -1)
    if style["strap"] == "thong strap":
        pen.line([(0.50, 0.20), (0.32, 0.44)], 0.07)
        pen.line([(0.50, 0.20), (0.67, 0.46)], 0.07)
    elif style["strap"] == "cross strap":
        pen.line([(0.31, 0.28), (0.66, 0.50)], 0.10)
        pen.line([(0.68, 0.28), (0.35, 0.50)], 0.10, tone=1)
    else:
        pen.line([(0.30, 0.29), (0.70, 0.27)], 0.10)
        pen.line([(0.33, 0.47), (0.68, 0.46)], 0.10)
        pen.rect(0.55, 0.42, 0.62, 0.51, "trim", 2)


@product_type(
    "sock",
    "crew sock",
    family="wear",
    place="cosy winter outfits",
    materials="wool cotton",
    patterned=0.8,
    height=("ankle", "knee high"),
    toe=("contrast toe", "plain toe"),
)
def sock(pen: Pen, style: Style) -> None:
    top = 0.28 if style["height"] == "ankle" else 0.09
    pen.blob(
        [
            (0.26, top),
            (0.52, top),
            (0.54, 0.52),
            (0.80, 0.68),
            (0.86, 0.84),
            (0.68, 0.92),
            (0.40, 0.84),
            (0.24, 0.70),
            (0.26, 0.45),
        ]
    )
    pen.rect(0.235, top - 0.01, 0.535, top + 0.09, "second", 0, 0.02)
    if style["toe"] == "contrast toe":
        pen.blob([(0.72, 0.66), (0.82, 0.70), (0.87, 0.83), (0.72, 0.92), (0.66, 0.84)], "second")
        pen.blob([(0.25, 0.58), (0.36, 0.66), (0.38, 0.82), (0.26, 0.74)], "second")


@product_type(
    "handbag",
    "purse",
    "tote bag",
    family="wear",
    place="office outfits",
    materials="leather cotton rattan velvet",
    patterned=0.4,
    handle=("short handle", "shoulder strap"),
    shape=("boxy", "slouchy"),
    flap=("flap", "open top"),
)
def handbag(pen: Pen, style: Style) -> None:
    if style["handle"] == "short handle":
        pen.arc(0.33, 0.18, 0.67, 0.66, 180, 360, 0.045, "second", -1)
    else:
        pen.arc(0.22, 0.03, 0.78, 0.93, 180, 360, 0.03, "second", -1)
    if style["shape"] == "boxy":
        pen.poly([(0.20, 0.40), (0.80, 0.40), (0.86, 0.88), (0.14, 0.88)])
    else:
        pen.blob(
            [
                (0.22, 0.40),
                (0.50, 0.44),
                (0.78, 0.40),
                (0.92, 0.74),
                (0.70, 0.90),
                (0.30, 0.90),
                (0.08, 0.74),
            ]
        )
    if style["flap"] == "flap":
        pen.poly([(0.18, 0.39), (0.82, 0.39), (0.80, 0.58), (0.50, 0.68), (0.20, 0.58)], tone=-1)
        pen.rect(0.46, 0.61, 0.54, 0.71, "trim", 2)
    else:
        pen.rect(0.19, 0.38, 0.81, 0.45, "second")
    pen.oval(0.29, 0.38, 0.35, 0.44, "trim", 2, both=True)


@product_type(
    "backpack",
    "rucksack",
    "knapsack",
    family="wear",
    place="travel gear",
    materials="nylon leather cotton",
    patterned=0.4,
    pocket=("one pocket", "two pockets"),
    top=("roll top", "zip top"),
)
def backpack(pen: Pen, style: Style) -> None:
    pen.arc(0.42, 0.04, 0.58, 0.24, 160, 380, 0.03, "dark")
    pen.rect(0.13, 0.34, 0.25, 0.80, "second", -2, 0.05, both=True)
    pen.rect(0.21, 0.12, 0.79, 0.93, "main", 0, 0.14)
    if style["top"] == "roll top":
        pen.rect(0.23, 0.10, 0.77, 0.25, "second", 0, 0.03)
        pen.rect(0.34, 0.10, 0.38, 0.50, "dark", both=True)
    else:
        pen.arc(0.26, 0.19, 0.74, 0.75, 190, 350, 0.02, "dark")
    if style["pocket"] == "one pocket":
        pen.rect(0.29, 0.55, 0.71, 0.87, "second", 0, 0.05)
        pen.line([(0.31, 0.63), (0.69, 0.63)], 0.02, "dark")
    else:
        pen.rect(0.28, 0.52, 0.72, 0.67, "second", 0, 0.03)
        pen.rect(0.28, 0.71, 0.72, 0.88, tone=-1, radius=0.03)
