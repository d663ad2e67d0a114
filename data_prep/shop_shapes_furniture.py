"""Furniture and rugs of the generated catalogue, one drawing function a type."""

# fmt: off  (outlines of shapes read better as rows of points than one number a line)

from __future__ import annotations

from data_prep.shop_pen import Pen, Style, product_type

SOFT = "linen velvet leather cotton wool"
HARD = "wood metal plastic rattan"


@product_type(
    "sofa", "couch", "settee", family="home", place="living room", materials=SOFT, patterned=0.35,
    seats=("2-seater", "3-seater"), arms=("square arms", "rolled arms"), legs=("tapered legs", "low base"),
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
    "armchair", "accent chair", "lounge chair", family="home", place="living room", materials=SOFT,
    patterned=0.5, back=("wing back", "low back"), legs=("tapered legs", "skirted base"),
)
def armchair(pen: Pen, style: Style) -> None:
    if style["legs"] == "tapered legs":
        pen.poly([(0.24, 0.78), (0.31, 0.78), (0.26, 0.95), (0.22, 0.95)], "trim", both=True)
    else:
        pen.rect(0.20, 0.76, 0.80, 0.90, "main", -2)
    if style["back"] == "wing back":
        pen.blob([(0.22, 0.55), (0.20, 0.16), (0.34, 0.08), (0.50, 0.05), (0.66, 0.08), (0.80, 0.16),
                  (0.78, 0.55)])
        pen.blob([(0.17, 0.50), (0.16, 0.18), (0.25, 0.12), (0.28, 0.50)], tone=-1, both=True)
    else:
        pen.rect(0.22, 0.26, 0.78, 0.66, "main", 0, 0.10)
    pen.rect(0.24, 0.56, 0.76, 0.82, "main", -1)
    pen.rect(0.27, 0.53, 0.73, 0.67, "second", 0, 0.04)
    pen.rect(0.12, 0.46, 0.29, 0.82, "main", 0, 0.05, both=True)
    pen.line([(0.285, 0.50), (0.285, 0.80)], 0.014, tone=-2)
    pen.line([(0.715, 0.50), (0.715, 0.80)], 0.014, tone=-2)


@product_type(
    "chair", "dining chair", "side chair", family="home", place="dining room", materials=HARD,
    patterned=0.0, back=("slatted back", "solid back", "open back"), seat=("cushioned seat", "bare seat"),
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
    "stool", "bar stool", "footstool", family="home", place="kitchen", materials=HARD,
    patterned=0.0, legs=("three legs", "pedestal", "four legs"), seat=("round seat", "saddle seat"),
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
        pen.blob([(0.22, 0.14), (0.50, 0.20), (0.78, 0.14), (0.74, 0.28), (0.50, 0.31), (0.26, 0.28)], "second")


@product_type(
    "bench", "settle", family="home", place="hallway", materials="wood metal rattan",
    patterned=0.0, seat=("slatted seat", "upholstered seat"), legs=("straight legs", "x legs"),
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
    "bed", "bedstead", "double bed", family="home", place="bedroom",
    materials="wood linen velvet metal leather", patterned=0.1,
    headboard=("tall headboard", "low headboard", "barred headboard"), cover=("folded throw", "plain cover"),
)
def bed(pen: Pen, style: Style) -> None:
    top = {"tall headboard": 0.12, "low headboard": 0.28, "barred headboard": 0.14}[style["headboard"]]
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


@product_type(
    "dining table", "kitchen table", family="home", place="dining room", materials="wood metal glass plastic",
    patterned=0.0, legs=("four legs", "pedestal base", "trestle legs"), top=("thick top", "thin top"),
)
def dining_table(pen: Pen, style: Style) -> None:
    if style["legs"] == "pedestal base":
        pen.poly([(0.46, 0.36), (0.54, 0.36), (0.56, 0.80), (0.44, 0.80)], "second", -1)
        pen.blob([(0.50, 0.76), (0.68, 0.86), (0.50, 0.90), (0.32, 0.86)], "second", -1)
    elif style["legs"] == "trestle legs":
        pen.line([(0.24, 0.38), (0.13, 0.88)], 0.05, "second", -1, both=True)
        pen.line([(0.24, 0.38), (0.33, 0.88)], 0.05, "second", -2, both=True)
    else:
        pen.rect(0.10, 0.38, 0.16, 0.90, "second", -1, both=True)
        pen.rect(0.22, 0.38, 0.26, 0.76, "second", -2, both=True)
    pen.poly([(0.18, 0.22), (0.82, 0.22), (0.96, 0.38), (0.04, 0.38)], tone=1)
    pen.rect(0.04, 0.38, 0.96, 0.38 + (0.08 if style["top"] == "thick top" else 0.035), tone=-1)


@product_type(
    "coffee table", "cocktail table", family="home", place="living room", materials="wood metal glass rattan",
    patterned=0.0, shape=("round top", "rectangular top"), shelf=("lower shelf", "open base"),
)
def coffee_table(pen: Pen, style: Style) -> None:
    round_top = style["shape"] == "round top"
    pen.rect(0.18, 0.48, 0.22, 0.76, "trim", both=True)
    pen.rect(0.34, 0.48, 0.37, 0.70, "trim", -1, both=True)
    if style["shelf"] == "lower shelf":
        if round_top:
            pen.oval(0.17, 0.62, 0.83, 0.72, "second", -1)
        else:
            pen.poly([(0.22, 0.62), (0.78, 0.62), (0.84, 0.70), (0.16, 0.70)], "second", -1)
    if round_top:
        pen.oval(0.06, 0.39, 0.94, 0.59, tone=-1)
        pen.oval(0.06, 0.34, 0.94, 0.54, tone=1)
    else:
        pen.poly([(0.18, 0.34), (0.82, 0.34), (0.95, 0.50), (0.05, 0.50)], tone=1)
        pen.rect(0.05, 0.50, 0.95, 0.55, tone=-1)


@product_type(
    "desk", "writing desk", "work table", family="home", place="home office", materials="wood metal plastic",
    patterned=0.0, drawers=("one side drawers", "two side drawers", "slim drawer"), legs=("metal legs", "panel legs"),
)
def desk(pen: Pen, style: Style) -> None:
    if style["legs"] == "metal legs":
        pen.line([(0.10, 0.36), (0.07, 0.90)], 0.035, "trim", both=True)
        pen.line([(0.18, 0.36), (0.20, 0.80)], 0.03, "trim", -1, both=True)
    else:
        pen.rect(0.07, 0.36, 0.14, 0.90, tone=-1, both=True)
    pen.poly([(0.14, 0.24), (0.86, 0.24), (0.96, 0.34), (0.04, 0.34)], tone=1)
    pen.rect(0.04, 0.34, 0.96, 0.40)
    if style["drawers"] == "slim drawer":
        pen.rect(0.30, 0.40, 0.70, 0.50, "second", -1)
        pen.rect(0.46, 0.44, 0.54, 0.465, "trim", 2)
        return
    both = style["drawers"] == "two side drawers"
    pen.rect(0.62, 0.40, 0.88, 0.82, "second", -1, both=both)
    for y in (0.43, 0.56, 0.69):
        pen.rect(0.645, y, 0.855, y + 0.105, "second", 1, both=both)
        pen.rect(0.72, y + 0.04, 0.78, y + 0.065, "trim", -1, both=both)


@product_type(
    "bookshelf", "bookcase", "shelving unit", family="home", place="home office", materials="wood metal plastic",
    patterned=0.0, shelves=("three shelves", "four shelves"), back=("closed back", "open back"),
)
def bookshelf(pen: Pen, style: Style) -> None:
    n = 3 if style["shelves"] == "three shelves" else 4
    pen.rect(0.22, 0.05, 0.78, 0.95, tone=0)
    h = 0.86 / n
    for i in range(n):
        y0, y1 = 0.08 + i * h, 0.08 + (i + 1) * h - 0.04
        pen.rect(0.27, y0, 0.73, y1, "main" if style["back"] == "closed back" else "hole", -2)
        for k, (x, part) in enumerate((("0.29", "second"), ("0.36", "light"), ("0.42", "dark"), ("0.48", "second"))):
            if (i + k) % 4 < 3:
                x0 = float(x) + (0.16 if i % 2 else 0.0)
                top = y0 + h * (0.22, 0.34, 0.14, 0.28)[(k + i) % 4]
                pen.rect(x0, top, x0 + 0.05, y1, part, (k % 2))  # type: ignore[arg-type]
    pen.line([(0.225, 0.05), (0.225, 0.95)], 0.014, tone=-1)


@product_type(
    "wardrobe", "armoire", "closet", family="home", place="bedroom", materials="wood rattan plastic metal",
    patterned=0.0, doors=("two doors", "three doors"), base=("drawers below", "short feet"), front=("panelled", "mirrored"),
)
def wardrobe(pen: Pen, style: Style) -> None:
    pen.rect(0.18, 0.88, 0.24, 0.96, "trim", both=True)
    pen.rect(0.14, 0.07, 0.86, 0.91, tone=-1)
    pen.rect(0.11, 0.04, 0.89, 0.10, tone=1)
    n = 2 if style["doors"] == "two doors" else 3
    bottom = 0.70 if style["base"] == "drawers below" else 0.88
    w = 0.68 / n
    for i in range(n):
        x0 = 0.16 + i * w
        pen.rect(x0 + 0.01, 0.13, x0 + w - 0.01, bottom)
        mirrored = style["front"] == "mirrored" and i == n - 1
        part, tone = ("light", -1) if mirrored else ("second", 0)
        pen.rect(x0 + 0.05, 0.17, x0 + w - 0.05, bottom - 0.05, part, tone)  # type: ignore[arg-type]
        pen.rect(x0 + w - 0.045, 0.40, x0 + w - 0.02, 0.52, "trim", 2)
    if style["base"] == "drawers below":
        pen.rect(0.17, 0.73, 0.495, 0.88, both=True)
        pen.rect(0.29, 0.79, 0.38, 0.82, "trim", 2, both=True)


@product_type(
    "dresser", "chest of drawers", "commode", family="home", place="bedroom", materials="wood rattan plastic metal",
    patterned=0.0, drawers=("six drawers", "three drawers"), knobs=("round knobs", "bar handles"), legs=("high legs", "plinth"),
)
def dresser(pen: Pen, style: Style) -> None:
    bottom = 0.78
    if style["legs"] == "high legs":
        pen.poly([(0.14, bottom), (0.21, bottom), (0.15, 0.94), (0.12, 0.94)], "trim", both=True)
    else:
        pen.rect(0.12, bottom, 0.88, 0.88, "dark")
    pen.rect(0.09, 0.22, 0.91, bottom, tone=-1)
    pen.rect(0.06, 0.18, 0.94, 0.24, tone=1)
    columns = 2 if style["drawers"] == "six drawers" else 1
    w = 0.78 / columns
    for i in range(3):
        for j in range(columns):
            x0, y0 = 0.11 + j * w, 0.27 + i * 0.17
            pen.rect(x0 + 0.012, y0, x0 + w - 0.012, y0 + 0.145, "second" if i == 1 else "main")
            x, y = x0 + w / 2, y0 + 0.07
            if style["knobs"] == "round knobs":
                for dx in (-w / 4, w / 4):
                    pen.oval(x + dx - 0.022, y - 0.022, x + dx + 0.022, y + 0.022, "trim", 2)
            else:
                pen.rect(x - w / 4, y - 0.015, x + w / 4, y + 0.015, "trim", 1)


@product_type(
    "rug", "carpet", "floor mat", family="home", place="living room", materials="wool cotton rattan",
    patterned=0.9, shape=("round", "rectangular", "runner"), border=("wide border", "fringed", "no border"),
)
def rug(pen: Pen, style: Style) -> None:
    if style["shape"] == "round":
        pen.oval(0.07, 0.07, 0.93, 0.93, "main" if style["border"] == "no border" else "second")
        pen.oval(0.15, 0.15, 0.85, 0.85)
        return
    x0, x1 = (0.32, 0.68) if style["shape"] == "runner" else (0.16, 0.84)
    if style["border"] == "fringed":
        for i in range(int((x1 - x0) / 0.045)):
            pen.line([(x0 + 0.02 + 0.045 * i, 0.05), (x0 + 0.02 + 0.045 * i, 0.95)], 0.016, "light")
    pen.rect(x0, 0.10, x1, 0.90)
    if style["border"] == "wide border":
        pen.rect(x0, 0.10, x1, 0.90, "second")
        pen.rect(x0 + 0.07, 0.17, x1 - 0.07, 0.83)


@product_type(
    "ottoman", "pouf", "hassock", family="home", place="living room", materials=SOFT + " rattan",
    patterned=0.6, shape=("drum shape", "cube shape"), base=("button feet", "piped base"),
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
