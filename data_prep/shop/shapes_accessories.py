"""Hats and accessories of the generated catalogue, one drawing function a type."""

from __future__ import annotations

from data_prep.shop.pen import Part, Pen, Style, product_type


@product_type(
    "hat",
    "fedora",
    "sun hat",
    family="wear",
    place="summer outfits",
    materials="wool rattan cotton leather",
    patterned=0.15,
    brim=("wide brim", "narrow brim"),
    crown=("round crown", "pinched crown"),
)
def hat(pen: Pen, style: Style) -> None:
    edge = 0.05 if style["brim"] == "wide brim" else 0.16
    pen.oval(edge, 0.54, 1 - edge, 0.76, tone=-1)
    pen.oval(edge, 0.52, 1 - edge, 0.72)
    if style["crown"] == "round crown":
        pen.blob(
            [(0.27, 0.63), (0.29, 0.36), (0.50, 0.22), (0.71, 0.36), (0.73, 0.63), (0.50, 0.68)]
        )
    else:
        pen.poly(
            [
                (0.27, 0.62),
                (0.32, 0.28),
                (0.44, 0.22),
                (0.50, 0.28),
                (0.56, 0.22),
                (0.68, 0.28),
                (0.73, 0.62),
                (0.50, 0.67),
            ]
        )
    pen.poly(
        [(0.275, 0.52), (0.50, 0.57), (0.725, 0.52), (0.73, 0.62), (0.50, 0.67), (0.27, 0.62)],
        "second",
    )


@product_type(
    "cap",
    "baseball cap",
    "snapback",
    family="wear",
    place="streetwear",
    materials="cotton denim wool",
    patterned=0.3,
    peak=("curved peak", "flat peak"),
    badge=("front badge", "no badge"),
)
def cap(pen: Pen, style: Style) -> None:
    pen.pie(0.10, 0.22, 0.72, 0.96, 180, 360)
    pen.line([(0.41, 0.23), (0.44, 0.58)], 0.014, tone=-2)
    if style["peak"] == "curved peak":
        pen.blob(
            [(0.44, 0.55), (0.72, 0.52), (0.94, 0.64), (0.90, 0.71), (0.66, 0.62), (0.44, 0.62)],
            "second",
        )
    else:
        pen.poly([(0.40, 0.55), (0.95, 0.52), (0.95, 0.58), (0.40, 0.63)], "second")
    pen.oval(0.38, 0.19, 0.45, 0.25, "second", 1)
    pen.rect(0.10, 0.56, 0.46, 0.61, tone=-2)
    if style["badge"] == "front badge":
        pen.oval(0.48, 0.33, 0.64, 0.50, "light")


@product_type(
    "beanie",
    "knit hat",
    "bobble hat",
    family="wear",
    place="cosy winter outfits",
    materials="wool cotton",
    patterned=0.6,
    top=("pom-pom", "plain top"),
    cuff=("wide cuff", "narrow cuff"),
)
def beanie(pen: Pen, style: Style) -> None:
    cuff = 0.62 if style["cuff"] == "wide cuff" else 0.71
    pen.blob(
        [
            (0.18, 0.74),
            (0.20, 0.44),
            (0.36, 0.24),
            (0.64, 0.24),
            (0.80, 0.44),
            (0.82, 0.74),
            (0.50, 0.78),
        ]
    )
    for k in (-2, -1, 0, 1, 2):
        pen.line([(0.50 + 0.05 * k, 0.25), (0.50 + 0.135 * k, cuff)], 0.013, tone=-1)
    pen.rect(0.15, cuff, 0.85, 0.84, "second", 0, 0.04)
    if style["top"] == "pom-pom":
        pen.oval(0.38, 0.07, 0.62, 0.30, "second", 1)


@product_type(
    "scarf",
    "shawl",
    "muffler",
    family="wear",
    place="cosy winter outfits",
    materials="wool silk cotton",
    patterned=0.8,
    ends=("fringed", "plain ends"),
    wrap=("looped", "draped"),
)
def scarf(pen: Pen, style: Style) -> None:
    ends = [(0.34, 0.40, 0.52, 0.92), (0.54, 0.36, 0.72, 0.78)]
    if style["wrap"] == "draped":
        ends = [(0.24, 0.20, 0.42, 0.92), (0.60, 0.20, 0.78, 0.86)]
    for x0, y0, x1, y1 in ends:
        if style["ends"] == "fringed":
            for i in range(5):
                x = x0 + 0.015 + i * (x1 - x0 - 0.03) / 4
                pen.line([(x, y1 - 0.01), (x, y1 + 0.055)], 0.015, "second")
        pen.rect(x0, y0, x1, y1, tone=-1)
        pen.rect(x0, y1 - 0.08, x1, y1 - 0.03, "second")
    if style["wrap"] == "looped":
        pen.oval(0.18, 0.10, 0.82, 0.50)
        pen.oval(0.33, 0.12, 0.67, 0.30, "hole")
        pen.arc(0.24, 0.10, 0.76, 0.44, 20, 160, 0.02, tone=-2)
    else:
        pen.arc(0.24, 0.06, 0.78, 0.50, 180, 360, 0.16)


@product_type(
    "sunglasses",
    "shades",
    "sunnies",
    family="wear",
    place="beach holiday",
    materials="plastic metal wood",
    patterned=0.15,
    lens=("round lens", "square lens", "cat eye"),
    tint=("dark tint", "coloured tint"),
)
def sunglasses(pen: Pen, style: Style) -> None:
    tint: Part = "dark" if style["tint"] == "dark tint" else "second"
    pen.line([(0.10, 0.44), (0.05, 0.36), (0.16, 0.30)], 0.035, "main", -1, both=True)
    if style["lens"] == "round lens":
        pen.oval(0.08, 0.36, 0.46, 0.72, both=True)
        pen.oval(0.125, 0.405, 0.415, 0.675, tint, 0, both=True)
    elif style["lens"] == "square lens":
        pen.rect(0.07, 0.38, 0.46, 0.68, "main", 0, 0.05, both=True)
        pen.rect(0.12, 0.425, 0.41, 0.64, tint, 0, 0.04, both=True)
    else:
        pen.poly(
            [(0.03, 0.32), (0.30, 0.38), (0.46, 0.42), (0.42, 0.64), (0.26, 0.70), (0.12, 0.60)],
            both=True,
        )
        pen.poly(
            [(0.11, 0.39), (0.40, 0.46), (0.37, 0.60), (0.26, 0.65), (0.16, 0.57)],
            tint,
            0,
            both=True,
        )
    pen.line([(0.19, 0.58), (0.28, 0.47)], 0.025, "light", 0)
    pen.line([(0.71, 0.58), (0.80, 0.47)], 0.025, "light", 0)
    pen.arc(0.42, 0.42, 0.58, 0.58, 190, 350, 0.04)


@product_type(
    "watch",
    "wristwatch",
    family="wear",
    place="gifts for him",
    materials="leather metal plastic",
    patterned=0.15,
    dial=("round dial", "square dial"),
    face=("white face", "black face"),
    marks=("minimal", "chronograph"),
)
def watch(pen: Pen, style: Style) -> None:
    pen.poly([(0.40, 0.04), (0.60, 0.04), (0.63, 0.40), (0.37, 0.40)])
    pen.poly([(0.37, 0.60), (0.63, 0.60), (0.59, 0.96), (0.41, 0.96)])
    for y in (0.80, 0.86):
        pen.oval(0.485, y, 0.515, y + 0.03, "dark")
    pen.rect(0.78, 0.46, 0.85, 0.54, "trim", 1)
    face: Part = "light" if style["face"] == "white face" else "dark"
    ink: Part = "dark" if face == "light" else "light"
    if style["dial"] == "round dial":
        pen.oval(0.21, 0.21, 0.79, 0.79, "trim", 1)
        pen.oval(0.27, 0.27, 0.73, 0.73, face)
    else:
        pen.rect(0.23, 0.23, 0.77, 0.77, "trim", 1, 0.06)
        pen.rect(0.29, 0.29, 0.71, 0.71, face, 0, 0.03)
    if style["marks"] == "chronograph":
        pen.oval(0.34, 0.50, 0.47, 0.63, "second", both=True)
    for x, y in ((0.5, 0.30), (0.5, 0.70), (0.30, 0.5), (0.70, 0.5)):
        pen.oval(x - 0.018, y - 0.018, x + 0.018, y + 0.018, ink)
    pen.line([(0.50, 0.34), (0.50, 0.50), (0.62, 0.56)], 0.028, ink)


@product_type(
    "belt",
    "waist belt",
    family="wear",
    place="gifts for him",
    materials="leather cotton rattan",
    patterned=0.3,
    buckle=("square buckle", "round buckle"),
    width=("slim", "wide"),
)
def belt(pen: Pen, style: Style) -> None:
    w = 0.09 if style["width"] == "slim" else 0.15
    pen.arc(0.10, 0.22, 0.90, 0.80, 0, 360, w, tone=-1)
    pen.arc(0.10, 0.22, 0.90, 0.80, 20, 160, w)
    y = 0.80 - w / 2
    if style["buckle"] == "square buckle":
        pen.rect(0.38, y - 0.10, 0.58, y + 0.10, "trim", 1, 0.02)
        pen.rect(0.43, y - 0.055, 0.53, y + 0.055, "second", -1)
    else:
        pen.oval(0.37, y - 0.11, 0.59, y + 0.11, "trim", 1)
        pen.oval(0.42, y - 0.06, 0.54, y + 0.06, "second", -1)
    pen.line([(0.46, y), (0.58, y)], 0.025, "trim", 2)
    for x in (0.64, 0.70, 0.76):
        pen.oval(x, y - 0.035, x + 0.025, y - 0.01, "dark")


@product_type(
    "tie",
    "necktie",
    family="wear",
    place="gifts for him",
    materials="silk wool cotton",
    patterned=0.85,
    width=("slim", "wide"),
    tip=("pointed tip", "square tip"),
)
def tie(pen: Pen, style: Style) -> None:
    w = 0.09 if style["width"] == "slim" else 0.15
    pen.arc(0.28, 0.05, 0.72, 0.30, 180, 360, 0.05, "main", -2)
    pen.poly([(0.42, 0.13), (0.58, 0.13), (0.555, 0.27), (0.445, 0.27)], "second")
    pen.poly([(0.45, 0.26), (0.55, 0.26), (0.50 + w, 0.80), (0.50 - w, 0.80)])
    if style["tip"] == "pointed tip":
        pen.poly([(0.50 - w, 0.80), (0.50 + w, 0.80), (0.50, 0.95)])
    else:
        pen.rect(0.50 - w, 0.79, 0.50 + w, 0.88, "second", -1)


@product_type(
    "glove",
    "mitten",
    family="wear",
    place="cosy winter outfits",
    materials="wool leather cotton",
    patterned=0.4,
    fingers=("five fingers", "mitten shape"),
    cuff=("ribbed cuff", "flared cuff"),
)
def glove(pen: Pen, style: Style) -> None:
    pen.blob([(0.33, 0.44), (0.50, 0.40), (0.68, 0.44), (0.68, 0.62), (0.62, 0.78), (0.38, 0.78)])
    pen.line([(0.66, 0.66), (0.83, 0.46)], 0.12)
    pen.oval(0.77, 0.39, 0.89, 0.51)
    if style["fingers"] == "five fingers":
        for x, top in ((0.37, 0.22), (0.47, 0.13), (0.57, 0.14), (0.66, 0.24)):
            pen.rect(x - 0.045, top, x + 0.04, 0.55, "main", 0, 0.04)
            pen.line([(x + 0.045, 0.34), (x + 0.045, 0.50)], 0.012, tone=-2)
    else:
        pen.blob([(0.33, 0.50), (0.34, 0.24), (0.50, 0.12), (0.66, 0.24), (0.69, 0.50)])
    flare = 0.06 if style["cuff"] == "flared cuff" else 0.0
    pen.poly([(0.36, 0.74), (0.64, 0.74), (0.65 + flare, 0.92), (0.35 - flare, 0.92)], "second")


@product_type(
    "necklace",
    "pendant",
    "choker",
    family="wear",
    place="party looks",
    materials="metal glass wood",
    patterned=0.0,
    beads=("beaded", "chain"),
    charm=("drop charm", "star charm", "disc charm"),
)
def necklace(pen: Pen, style: Style) -> None:
    if style["beads"] == "beaded":
        for i in range(13):
            t = (i - 6) / 6
            x, y = 0.50 + 0.36 * t, 0.66 - 0.52 * t * t
            pen.oval(x - 0.045, y - 0.045, x + 0.045, y + 0.045, "main", i % 2)
    else:
        path = [(0.50 + 0.36 * t / 6, 0.66 - 0.52 * (t / 6) ** 2) for t in range(-6, 7)]
        pen.line(path, 0.035, "trim", 1)
    if style["charm"] == "drop charm":
        pen.blob([(0.50, 0.64), (0.61, 0.82), (0.50, 0.93), (0.39, 0.82)], "main", 1)
    elif style["charm"] == "star charm":
        pen.poly(
            [
                (0.50, 0.64),
                (0.54, 0.75),
                (0.65, 0.79),
                (0.54, 0.83),
                (0.50, 0.94),
                (0.46, 0.83),
                (0.35, 0.79),
                (0.46, 0.75),
            ],
            "main",
            1,
        )
    else:
        pen.oval(0.38, 0.67, 0.62, 0.91, "main")
        pen.oval(0.44, 0.73, 0.56, 0.85, "second")


@product_type(
    "umbrella",
    "parasol",
    "brolly",
    family="wear",
    place="travel gear",
    materials="nylon cotton",
    patterned=0.7,
    handle=("hook handle", "straight handle"),
    panels=("two-tone panels", "even panels"),
)
def umbrella(pen: Pen, style: Style) -> None:
    pen.line([(0.50, 0.10), (0.50, 0.84)], 0.03, "trim")
    if style["handle"] == "hook handle":
        pen.arc(0.34, 0.74, 0.515, 0.94, 0, 180, 0.035, "trim")
    else:
        pen.rect(0.475, 0.76, 0.525, 0.94, "trim", -1)
    pen.pie(0.06, 0.12, 0.94, 0.96, 180, 360)
    if style["panels"] == "two-tone panels":
        pen.pie(0.30, 0.12, 0.70, 0.96, 180, 360, "second")
    else:
        pen.arc(0.30, 0.12, 0.70, 0.96, 180, 360, 0.014, tone=-2)
    for x in (0.06, 0.28, 0.50, 0.72):
        pen.oval(x, 0.495, x + 0.22, 0.60, "hole")
    pen.line([(0.50, 0.54), (0.50, 0.70)], 0.03, "trim")
