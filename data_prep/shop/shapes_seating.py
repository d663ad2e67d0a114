"""Seats and beds of the generated catalogue, one drawing function a type."""

from __future__ import annotations

from data_prep.shop.pen import Pen, Style, product_type

SOFT = "linen velvet leather cotton wool"
HARD = "wood metal plastic rattan"


@product_type(
    "sofa",
    "couch",
    "settee",
    family="home",
    place="living room",
    materials=SOFT,
    patterned=0.35,
    seats=("2-seater", "3-seater"),
    arms=("square arms", "rolled arms"),
    legs=("tapered legs", "low base"),
)
def sofa(pen: Pen, style: Style) -> None:
    if style["legs"] == "tapered legs":
        pen.poly([(0.12, 0.72), (0.18, 0.72), (0.15, 0.86), (0.12, 0.86)], "trim", both=True)
    else:
        pen.rect(0.10, 0.72, 0.90, 0.80, "dark")
    pen.rect(0.12, 0.26, 0.88, 0.66, "main", 0, 0.06)
    pen.rect(0.09, 0.56, 0.91, 0.76, "main", -1, 0.03)
    n = int(style["seats"][0])
    for i in range(n):
        w = 0.70 / n
        x = 0.15 + i * w
        pen.rect(x + 0.008, 0.30, x + w - 0.008, 0.56, "main", 0, 0.04)
        pen.rect(x + 0.004, 0.53, x + w - 0.004, 0.66, "main", 1, 0.03)
        if i:
            pen.line([(x, 0.30), (x, 0.66)], 0.014, tone=-2)
    pen.line([(0.15, 0.665), (0.85, 0.665)], 0.014, tone=-2)
    if style["arms"] == "square arms":
        pen.rect(0.05, 0.42, 0.17, 0.76, "main", -1, 0.02, both=True)
        pen.rect(0.05, 0.42, 0.17, 0.48, "main", 1, 0.02, both=True)
    else:
        pen.rect(0.06, 0.48, 0.16, 0.76, "main", -1, both=True)
        pen.oval(0.03, 0.38, 0.19, 0.54, "main", 0, both=True)
        pen.oval(0.07, 0.42, 0.15, 0.50, "main", -2, both=True)
    pen.rect(0.19, 0.38, 0.33, 0.55, "second", 0, 0.03)


@product_type(
    "armchair",
    "accent chair",
    "lounge chair",
    family="home",
    place="living room",
    materials=SOFT,
    patterned=0.5,
    back=("wing back", "low back"),
    legs=("tapered legs", "skirted base"),
)
def armchair(pen: Pen, style: Style) -> None:
    if style["legs"] == "tapered legs":
        pen.poly([(0.24, 0.78), (0.31, 0.78), (0.26, 0.95), (0.22, 0.95)], "trim", both=True)
    else:
        pen.rect(0.20, 0.76, 0.80, 0.90, "main", -2)
    if style["back"] == "wing back":
        pen.blob(
            [
                (0.22, 0.55),
                (0.20, 0.16),
                (0.34, 0.08),
                (0.50, 0.05),
                (0.66, 0.08),
                (0.80, 0.16),
                (0.78, 0.55),
            ]
        )
        pen.blob([(0.17, 0.50), (0.16, 0.18), (0.25, 0.12), (0.28, 0.50)], tone=-1, both=True)
    else:
        pen.rect(0.22, 0.26, 0.78, 0.66, "main", 0, 0.10)
    pen.rect(0.24, 0.56, 0.76, 0.82, "main", -1)
    pen.rect(0.27, 0.53, 0.73, 0.67, "second", 0, 0.04)
    pen.rect(0.12, 0.46, 0.29, 0.82, "main", 0, 0.05, both=True)
    pen.line([(0.285, 0.50), (0.285, 0.80)], 0.014, tone=-2)
    pen.line([(0.715, 0.50), (0.715, 0.80)], 0.014, tone=-2)


@product_type(
    "chair",
    "dining chair",
    "side chair",
    family="home",
    place="dining room",
    materials=HARD,
    patterned=0.0,
    back=("slatted back", "solid back", "open back"),
    seat=("cushioned seat", "bare seat"),
)
def chair(pen: Pen, style: Style) -> None:
    pen.rect(0.30, 0.06, 0.35, 0.60, "main", -1)
    pen.rect(0.63, 0.06, 0.68, 0.60, "main", -1)
    if style["back"] == "solid back":
        pen.rect(0.30, 0.06, 0.68, 0.42, "main", 0, 0.04)
    else:
        pen.rect(0.30, 0.06, 0.68, 0.14)
        pen.rect(0.30, 0.38, 0.68, 0.43)
        if style["back"] == "slatted back":
            for x in (0.40, 0.475, 0.55):
                pen.rect(x, 0.10, x + 0.03, 0.42)
    pen.poly([(0.33, 0.60), (0.38, 0.60), (0.37, 0.86), (0.33, 0.86)], tone=-2)
    pen.poly([(0.62, 0.60), (0.67, 0.60), (0.69, 0.86), (0.65, 0.86)], tone=-2)
    pen.poly([(0.22, 0.60), (0.28, 0.60), (0.26, 0.95), (0.21, 0.95)])
    pen.poly([(0.72, 0.60), (0.78, 0.60), (0.80, 0.95), (0.75, 0.95)])
    pen.poly([(0.29, 0.52), (0.70, 0.52), (0.80, 0.61), (0.20, 0.61)], tone=1)
    if style["seat"] == "cushioned seat":
        pen.poly([(0.31, 0.49), (0.68, 0.49), (0.77, 0.58), (0.23, 0.58)], "second")
    pen.rect(0.20, 0.605, 0.80, 0.65, tone=-1)


@product_type(
    "stool",
    "bar stool",
    "footstool",
    family="home",
    place="kitchen",
    materials=HARD,
    patterned=0.0,
    legs=("three legs", "pedestal", "four legs"),
    seat=("round seat", "saddle seat"),
)
def stool(pen: Pen, style: Style) -> None:
    if style["legs"] == "pedestal":
        pen.rect(0.47, 0.28, 0.53, 0.86, "trim")
        pen.oval(0.29, 0.82, 0.71, 0.94, "trim", -1)
        pen.arc(0.36, 0.54, 0.64, 0.66, 0, 360, 0.03, "trim", 1)
    else:
        pen.poly([(0.34, 0.26), (0.41, 0.26), (0.25, 0.95), (0.19, 0.95)], both=True)
        if style["legs"] == "four legs":
            pen.poly([(0.41, 0.26), (0.45, 0.26), (0.40, 0.88), (0.36, 0.88)], tone=-2, both=True)
        else:
            pen.rect(0.47, 0.26, 0.53, 0.90, tone=-2)
        pen.rect(0.28, 0.64, 0.72, 0.68, tone=-1)
    if style["seat"] == "round seat":
        pen.oval(0.24, 0.15, 0.76, 0.33, tone=-1)
        pen.oval(0.24, 0.11, 0.76, 0.28, "second")
    else:
        pen.blob(
            [(0.22, 0.14), (0.50, 0.20), (0.78, 0.14), (0.74, 0.28), (0.50, 0.31), (0.26, 0.28)],
            "second",
        )


@product_type(
    "bench",
    "settle",
    family="home",
    place="hallway",
    materials="wood metal rattan",
    patterned=0.0,
    seat=("slatted seat", "upholstered seat"),
    legs=("straight legs", "x legs"),
)
def bench(pen: Pen, style: Style) -> None:
    if style["legs"] == "straight legs":
        pen.rect(0.10, 0.50, 0.17, 0.80, both=True)
        pen.rect(0.20, 0.50, 0.25, 0.72, tone=-2, both=True)
        pen.rect(0.12, 0.66, 0.88, 0.70, tone=-1)
    else:
        pen.line([(0.10, 0.50), (0.30, 0.80)], 0.05, both=True)
        pen.line([(0.30, 0.50), (0.10, 0.80)], 0.05, tone=-1, both=True)
    if style["seat"] == "upholstered seat":
        pen.rect(0.05, 0.46, 0.95, 0.54, tone=-1)
        pen.rect(0.05, 0.35, 0.95, 0.48, "second", 0, 0.05)
        for x in (0.20, 0.35, 0.50, 0.65, 0.80):
            pen.oval(x - 0.015, 0.40, x + 0.015, 0.43, "second", -2)
    else:
        pen.poly([(0.11, 0.36), (0.89, 0.36), (0.96, 0.50), (0.04, 0.50)], tone=1)
        for k in (0.40, 0.45):
            pen.line([(0.06, k), (0.94, k)], 0.012, tone=-2)
        pen.rect(0.04, 0.50, 0.96, 0.55, tone=-1)


@product_type(
    "ottoman",
    "pouf",
    "hassock",
    family="home",
    place="living room",
    materials=SOFT + " rattan",
    patterned=0.6,
    shape=("drum shape", "cube shape"),
    base=("button feet", "piped base"),
)
def ottoman(pen: Pen, style: Style) -> None:
    if style["base"] == "button feet":
        pen.rect(0.22, 0.80, 0.30, 0.91, "trim", both=True)
    if style["shape"] == "drum shape":
        pen.oval(0.12, 0.62, 0.88, 0.88)
        pen.rect(0.12, 0.38, 0.88, 0.75)
        pen.oval(0.12, 0.24, 0.88, 0.52, "second")
        pen.oval(0.47, 0.355, 0.53, 0.40, "second", -2)
    else:
        pen.poly([(0.10, 0.40), (0.60, 0.46), (0.60, 0.88), (0.10, 0.78)])
        pen.poly([(0.60, 0.46), (0.92, 0.38), (0.92, 0.74), (0.60, 0.88)], tone=-1)
        pen.poly([(0.10, 0.40), (0.42, 0.30), (0.92, 0.38), (0.60, 0.46)], "second", 1)
    if style["base"] == "piped base" and style["shape"] == "drum shape":
        pen.arc(0.12, 0.62, 0.88, 0.88, 0, 180, 0.03, "second", -1)


@product_type(
    "bed",
    "bedstead",
    "double bed",
    family="home",
    place="bedroom",
    materials="wood linen velvet metal leather",
    patterned=0.1,
    headboard=("tall headboard", "low headboard", "barred headboard"),
    cover=("folded throw", "plain cover"),
)
def bed(pen: Pen, style: Style) -> None:
    top = {"tall headboard": 0.12, "low headboard": 0.28, "barred headboard": 0.14}[
        style["headboard"]
    ]
    if style["headboard"] == "barred headboard":
        pen.arc(0.14, top, 0.86, top + 0.40, 180, 360, 0.045)
        for k in range(6):
            x = 0.16 + 0.13 * k
            pen.rect(x, top + 0.16 - 0.13 * (k in (2, 3)) - 0.10 * (k in (1, 4)), x + 0.03, 0.5)
    else:
        pen.rect(0.14, top, 0.86, 0.60, "main", 0, 0.05)
        pen.line([(0.38, top + 0.03), (0.38, 0.5)], 0.014, tone=-2, both=True)
    pen.poly([(0.16, 0.46), (0.84, 0.46), (0.93, 0.76), (0.07, 0.76)], "light")
    pen.rect(0.20, 0.38, 0.47, 0.50, "light", 1, 0.05, both=True)
    pen.line([(0.22, 0.505), (0.78, 0.505)], 0.016, "light", -2)
    if style["cover"] == "folded throw":
        pen.poly([(0.13, 0.58), (0.87, 0.58), (0.93, 0.76), (0.07, 0.76)], "second")
    else:
        pen.poly([(0.145, 0.53), (0.855, 0.53), (0.93, 0.76), (0.07, 0.76)], "second", 1)
    pen.rect(0.06, 0.75, 0.94, 0.86, tone=-1)
    pen.rect(0.08, 0.86, 0.13, 0.93, "trim", -1, both=True)
