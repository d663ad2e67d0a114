"""Clothes of the generated catalogue. Each function draws one type; its decorator says what it is."""

from __future__ import annotations

from data_prep.shop.pen import Pen, Style, product_type

FABRICS = "cotton linen wool silk denim"
SLEEVES = ("short sleeve", "long sleeve")


def _torso(pen: Pen, hem: float, flare: float, sleeve: str, bulk: float = 0.0) -> None:
    """Body and two sleeves of a top, seen from the front."""
    x, drop = 0.31 - bulk, 0.16
    if sleeve == "long sleeve":
        cuff = ((0.10 - bulk / 2, 0.76), (0.21 - bulk / 2, 0.79))
    elif sleeve == "short sleeve":
        cuff = ((0.10, 0.42), (0.25, 0.50))
    else:
        cuff = ((0.27, 0.24), (0.31, 0.36))
    pen.poly([(0.38, drop), (0.27, 0.20), *cuff, (0.36, 0.38)], tone=-1, both=True)
    pen.poly(
        [
            (0.40, drop),
            (0.60, drop),
            (0.73, 0.21),
            (1 - x, 0.40),
            (1 - x + flare, hem),
            (x - flare, hem),
            (x, 0.40),
            (0.27, 0.21),
        ]
    )
    for side in (False, True):
        a, b = (0.335 - bulk, 0.36), (0.345 - bulk, min(hem, 0.62))
        pen.line([(1 - p[0], p[1]) if side else p for p in (a, b)], 0.014, tone=-2)


def _neck(pen: Pen, shape: str) -> None:
    if shape == "v-neck":
        pen.poly([(0.40, 0.155), (0.60, 0.155), (0.50, 0.33)], "second", -1)
        pen.poly([(0.43, 0.15), (0.57, 0.15), (0.50, 0.285)], "hole")
    elif shape == "turtleneck":
        pen.rect(0.405, 0.07, 0.595, 0.20, "second", 0, 0.03)
        pen.line([(0.42, 0.13), (0.58, 0.13)], 0.012, "second", -2)
    else:
        pen.oval(0.385, 0.08, 0.615, 0.25, "second", -1)
        pen.oval(0.41, 0.07, 0.59, 0.215, "hole")


@product_type(
    "t-shirt",
    "tee",
    "tee shirt",
    family="wear",
    place="summer outfits",
    materials="cotton linen silk",
    patterned=0.6,
    sleeve=SLEEVES,
    neck=("crew neck", "v-neck"),
    cut=("cropped", "regular fit", "longline"),
)
def tshirt(pen: Pen, style: Style) -> None:
    hem = {"cropped": 0.68, "regular fit": 0.82, "longline": 0.93}[style["cut"]]
    _torso(pen, hem, 0.0, style["sleeve"])
    _neck(pen, style["neck"])


@product_type(
    "shirt",
    "blouse",
    "button-up",
    family="wear",
    place="office outfits",
    materials="cotton linen silk denim",
    patterned=0.6,
    sleeve=SLEEVES,
    pocket=("chest pocket", "plain front"),
    cut=("regular fit", "relaxed fit"),
)
def shirt(pen: Pen, style: Style) -> None:
    _torso(pen, 0.88, 0.03 if style["cut"] == "relaxed fit" else 0.0, style["sleeve"])
    pen.rect(0.475, 0.18, 0.525, 0.88, tone=1)
    for i in range(6):
        pen.oval(0.487, 0.29 + 0.10 * i, 0.513, 0.316 + 0.10 * i, "dark")
    pen.poly([(0.40, 0.11), (0.50, 0.20), (0.43, 0.29), (0.34, 0.17)], "second", 1, both=True)
    if style["sleeve"] == "long sleeve":
        pen.poly([(0.10, 0.71), (0.21, 0.735), (0.21, 0.80), (0.095, 0.775)], "second", 0, True)
    if style["pocket"] == "chest pocket":
        pen.rect(0.56, 0.37, 0.66, 0.48, tone=-1)


@product_type(
    "sweater",
    "jumper",
    "pullover",
    family="wear",
    place="cosy winter outfits",
    materials="wool cotton",
    patterned=0.6,
    neck=("crew neck", "v-neck", "turtleneck"),
    cut=("regular fit", "oversized"),
)
def sweater(pen: Pen, style: Style) -> None:
    bulk = 0.04 if style["cut"] == "oversized" else 0.0
    _torso(pen, 0.84, -0.01, "long sleeve", bulk)
    x = 0.32 - bulk
    pen.rect(x, 0.80, 1 - x, 0.88, "second", -1, 0.01)
    pen.poly(
        [
            (0.105 - bulk / 2, 0.70),
            (0.215 - bulk / 2, 0.73),
            (0.205 - bulk / 2, 0.81),
            (0.095 - bulk / 2, 0.78),
        ],
        "second",
        -1,
        both=True,
    )
    _neck(pen, style["neck"])


@product_type(
    "hoodie",
    "hooded sweatshirt",
    "hoody",
    family="wear",
    place="streetwear",
    materials="cotton wool",
    patterned=0.35,
    closure=("zip front", "pullover front"),
    hem=("ribbed hem", "straight hem"),
)
def hoodie(pen: Pen, style: Style) -> None:
    pen.blob(
        [(0.50, 0.05), (0.68, 0.12), (0.69, 0.27), (0.50, 0.33), (0.31, 0.27), (0.32, 0.12)],
        tone=-1,
    )
    _torso(pen, 0.86, 0.0, "long sleeve", 0.02)
    pen.blob(
        [(0.50, 0.09), (0.62, 0.14), (0.61, 0.25), (0.50, 0.31), (0.39, 0.25), (0.38, 0.14)],
        "second",
        -2,
    )
    pen.poly([(0.38, 0.60), (0.62, 0.60), (0.70, 0.76), (0.30, 0.76)], tone=-1)
    if style["closure"] == "zip front":
        pen.line([(0.50, 0.30), (0.50, 0.87)], 0.022, "light")
    pen.line([(0.455, 0.29), (0.45, 0.46)], 0.018, "light", 0, both=True)
    if style["hem"] == "ribbed hem":
        pen.rect(0.29, 0.82, 0.71, 0.89, "second", 0, 0.01)


@product_type(
    "jacket",
    "bomber",
    "windbreaker",
    family="wear",
    place="streetwear",
    materials="leather denim cotton wool",
    patterned=0.25,
    collar=("stand collar", "lapel collar"),
    pockets=("flap pockets", "slant pockets"),
    cut=("cropped", "hip length"),
)
def jacket(pen: Pen, style: Style) -> None:
    hem = 0.72 if style["cut"] == "cropped" else 0.82
    _torso(pen, hem, 0.0, "long sleeve", 0.03)
    pen.poly([(0.46, 0.17), (0.54, 0.17), (0.55, hem), (0.45, hem)], "light", -1)
    pen.rect(0.28, hem - 0.01, 0.445, hem + 0.06, "second", -1, both=True)
    if style["collar"] == "lapel collar":
        pen.poly([(0.41, 0.13), (0.48, 0.34), (0.40, 0.42), (0.33, 0.20)], "second", 1, both=True)
    else:
        pen.poly([(0.40, 0.09), (0.47, 0.10), (0.46, 0.22), (0.37, 0.20)], "second", 0, both=True)
    pen.line([(0.45, 0.20), (0.45, hem)], 0.016, "trim", 1, both=True)
    if style["pockets"] == "flap pockets":
        pen.rect(0.31, 0.52, 0.42, 0.58, tone=-2, both=True)
    else:
        pen.line([(0.40, 0.50), (0.32, 0.64)], 0.024, tone=-2, both=True)


@product_type(
    "coat",
    "overcoat",
    "trench coat",
    family="wear",
    place="cosy winter outfits",
    materials="wool cotton leather",
    patterned=0.35,
    closure=("belted", "double breasted", "single breasted"),
    collar=("wide lapels", "fur collar"),
)
def coat(pen: Pen, style: Style) -> None:
    _torso(pen, 0.95, 0.07, "long sleeve", 0.01)
    pen.line([(0.50, 0.30), (0.50, 0.95)], 0.016, tone=-2)
    if style["collar"] == "fur collar":
        pen.blob(
            [(0.50, 0.08), (0.68, 0.16), (0.62, 0.32), (0.50, 0.26), (0.38, 0.32), (0.32, 0.16)],
            "light",
        )
    else:
        pen.poly([(0.42, 0.11), (0.50, 0.38), (0.36, 0.44), (0.31, 0.18)], "second", 1, both=True)
    if style["closure"] == "belted":
        pen.rect(0.29, 0.52, 0.71, 0.585, "second", -2)
        pen.rect(0.46, 0.50, 0.55, 0.605, "trim", 1)
    double = style["closure"] == "double breasted"
    for y in (0.50, 0.62, 0.74):
        pen.oval(0.40, y, 0.44, y + 0.04, "dark", both=double)


@product_type(
    "dress",
    "gown",
    "frock",
    family="wear",
    place="summer outfits",
    materials="cotton silk linen velvet",
    patterned=0.7,
    length=("mini", "midi", "maxi"),
    sleeve=("sleeveless", "short sleeve", "long sleeve"),
    skirt=("a-line", "pencil"),
)
def dress(pen: Pen, style: Style) -> None:
    hem = {"mini": 0.72, "midi": 0.85, "maxi": 0.95}[style["length"]]
    wide = 0.14 if style["skirt"] == "pencil" else 0.32
    if style["sleeve"] != "sleeveless":
        end = 0.30 if style["sleeve"] == "short sleeve" else 0.52
        lean = 0.07 if style["sleeve"] == "short sleeve" else 0.16
        pen.poly(
            [(0.38, 0.09), (0.33 - lean, end), (0.40 - lean, end + 0.04), (0.40, 0.24)],
            tone=-1,
            both=True,
        )
    pen.poly(
        [
            (0.37, 0.07),
            (0.42, 0.06),
            (0.42, 0.18),
            (0.58, 0.18),
            (0.58, 0.06),
            (0.63, 0.07),
            (0.63, 0.24),
            (0.60, 0.42),
            (0.40, 0.42),
            (0.37, 0.24),
        ]
    )
    pen.poly([(0.40, 0.41), (0.60, 0.41), (0.50 + wide, hem), (0.50 - wide, hem)], tone=0)
    for k in (-0.5, 0.0, 0.5):
        pen.line([(0.50 + 0.12 * k, 0.48), (0.50 + 1.2 * wide * k, hem)], 0.014, tone=-1)
    pen.rect(0.395, 0.40, 0.605, 0.45, "second", -1)


@product_type(
    "skirt",
    "midi skirt",
    family="wear",
    place="office outfits",
    materials="cotton denim leather wool silk",
    patterned=0.6,
    length=("mini", "midi"),
    cut=("pleated", "pencil", "a-line"),
)
def skirt(pen: Pen, style: Style) -> None:
    hem = 0.70 if style["length"] == "mini" else 0.90
    wide = {"pleated": 0.40, "pencil": 0.19, "a-line": 0.33}[style["cut"]]
    pen.poly([(0.34, 0.16), (0.66, 0.16), (0.50 + wide, hem), (0.50 - wide, hem)])
    if style["cut"] == "pleated":
        for k in range(-3, 4):
            x0, x1 = 0.50 + 0.045 * k, 0.50 + wide * k / 3.6
            pen.poly([(x0, 0.20), (x0 + 0.02, 0.20), (x1 + 0.055, hem), (x1, hem)], tone=-1)
    elif style["cut"] == "pencil":
        pen.line([(0.56, hem - 0.20), (0.57, hem)], 0.02, tone=-2)
    pen.rect(0.335, 0.11, 0.665, 0.18, "second", -1)


@product_type(
    "trousers",
    "pants",
    "slacks",
    family="wear",
    place="office outfits",
    materials="cotton denim wool linen leather",
    patterned=0.4,
    leg=("skinny", "straight leg", "flared"),
    waist=("belt loops", "elastic waist"),
)
def trousers(pen: Pen, style: Style) -> None:
    inner, outer = {"skinny": (0.38, 0.27), "straight leg": (0.46, 0.26), "flared": (0.49, 0.16)}[
        style["leg"]
    ]
    pen.poly(
        [(0.33, 0.09), (0.51, 0.09), (0.51, 0.36), (inner, 0.94), (outer, 0.94), (0.29, 0.36)],
        both=True,
    )
    pen.poly([(0.49, 0.30), (0.51, 0.30), (1 - inner, 0.94), (1 - inner + 0.04, 0.94)], tone=-1)
    pen.line([(0.39, 0.30), ((inner + outer) / 2, 0.93)], 0.014, tone=-1, both=True)
    pen.rect(0.325, 0.06, 0.675, 0.125, "second", -1)
    pen.line([(0.50, 0.12), (0.50, 0.32)], 0.016, tone=-2)
    pen.line([(0.41, 0.13), (0.315, 0.25)], 0.016, tone=-2, both=True)
    if style["waist"] == "belt loops":
        pen.rect(0.47, 0.065, 0.53, 0.12, "trim", 1)


@product_type(
    "shorts",
    "bermudas",
    family="wear",
    place="summer outfits",
    materials="cotton denim linen",
    patterned=0.6,
    length=("short inseam", "knee length"),
    waist=("drawstring", "buttoned"),
)
def shorts(pen: Pen, style: Style) -> None:
    hem = 0.66 if style["length"] == "short inseam" else 0.84
    pen.poly(
        [(0.28, 0.20), (0.51, 0.20), (0.51, 0.46), (0.465, hem), (0.14, hem - 0.04)], both=True
    )
    pen.poly(
        [(0.14, hem - 0.09), (0.47, hem - 0.05), (0.465, hem), (0.13, hem - 0.04)],
        "second",
        0,
        both=True,
    )
    pen.rect(0.275, 0.15, 0.725, 0.23, "second", -1)
    pen.line([(0.50, 0.22), (0.50, 0.46)], 0.018, tone=-2)
    pen.line([(0.37, 0.24), (0.25, 0.40)], 0.018, tone=-2, both=True)
    if style["waist"] == "drawstring":
        pen.line([(0.49, 0.20), (0.45, 0.38)], 0.02, "light", 0, both=True)
    else:
        pen.oval(0.475, 0.165, 0.525, 0.215, "trim", 1)


@product_type(
    "swimsuit",
    "bathing suit",
    "swimwear",
    family="wear",
    place="beach holiday",
    materials="nylon",
    patterned=0.7,
    cut=("one shoulder", "halter", "scoop neck"),
    leg=("high leg", "boy leg"),
)
def swimsuit(pen: Pen, style: Style) -> None:
    leg = 0.66 if style["leg"] == "high leg" else 0.78
    pen.poly(
        [
            (0.34, 0.28),
            (0.42, 0.31),
            (0.50, 0.33),
            (0.58, 0.31),
            (0.66, 0.28),
            (0.66, 0.40),
            (0.62, 0.54),
            (0.69, leg),
            (0.57, 0.84),
            (0.54, 0.92),
            (0.46, 0.92),
            (0.43, 0.84),
            (0.31, leg),
            (0.38, 0.54),
            (0.34, 0.40),
        ]
    )
    if style["cut"] == "halter":
        pen.poly([(0.36, 0.30), (0.46, 0.30), (0.515, 0.08), (0.47, 0.08)], tone=-1, both=True)
    else:
        pen.poly(
            [(0.35, 0.32), (0.43, 0.32), (0.42, 0.09), (0.37, 0.09)],
            tone=-1,
            both=style["cut"] == "scoop neck",
        )
    pen.line([(0.38, 0.54), (0.50, 0.56), (0.62, 0.54)], 0.03, "second")


@product_type(
    "dungarees",
    "overalls",
    "bib overalls",
    family="wear",
    place="streetwear",
    materials="denim cotton",
    patterned=0.25,
    leg=("short leg", "full length"),
    pocket=("bib pocket", "no pocket"),
)
def dungarees(pen: Pen, style: Style) -> None:
    hem = 0.68 if style["leg"] == "short leg" else 0.95
    pen.poly([(0.37, 0.28), (0.43, 0.28), (0.41, 0.05), (0.36, 0.05)], "second", -1, both=True)
    pen.poly([(0.35, 0.27), (0.65, 0.27), (0.69, 0.52), (0.31, 0.52)])
    pen.poly([(0.31, 0.48), (0.51, 0.48), (0.51, 0.60), (0.44, hem), (0.25, hem)], both=True)
    pen.line([(0.50, 0.52), (0.50, 0.62)], 0.016, tone=-2)
    pen.rect(0.30, 0.47, 0.70, 0.515, tone=-2)
    pen.oval(0.37, 0.27, 0.43, 0.33, "trim", 2, both=True)
    if style["pocket"] == "bib pocket":
        pen.rect(0.42, 0.33, 0.58, 0.44, "second", 0)
