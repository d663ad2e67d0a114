"""Tables, storage and rugs of the generated catalogue, one drawing function a type."""

from __future__ import annotations

from data_prep.shop.pen import Part, Pen, Style, product_type


@product_type(
    "dining table",
    "kitchen table",
    family="home",
    place="dining room",
    materials="wood metal glass plastic",
    patterned=0.0,
    legs=("four legs", "pedestal base", "trestle legs"),
    top=("thick top", "thin top"),
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
    "coffee table",
    "cocktail table",
    family="home",
    place="living room",
    materials="wood metal glass rattan",
    patterned=0.0,
    shape=("round top", "rectangular top"),
    shelf=("lower shelf", "open base"),
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
    "desk",
    "writing desk",
    "work table",
    family="home",
    place="home office",
    materials="wood metal plastic",
    patterned=0.0,
    drawers=("one side drawers", "two side drawers", "slim drawer"),
    legs=("metal legs", "panel legs"),
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
    "bookshelf",
    "bookcase",
    "shelving unit",
    family="home",
    place="home office",
    materials="wood metal plastic",
    patterned=0.0,
    shelves=("three shelves", "four shelves"),
    back=("closed back", "open back"),
)
def bookshelf(pen: Pen, style: Style) -> None:
    n = 3 if style["shelves"] == "three shelves" else 4
    pen.rect(0.22, 0.05, 0.78, 0.95, tone=0)
    h = 0.86 / n
    spines: tuple[Part, ...] = ("second", "light", "dark", "second")
    for i in range(n):
        y0, y1 = 0.08 + i * h, 0.08 + (i + 1) * h - 0.04
        pen.rect(0.27, y0, 0.73, y1, "main" if style["back"] == "closed back" else "hole", -2)
        for k, part in enumerate(spines):
            if (i + k) % 4 < 3:
                x0 = 0.29 + 0.065 * k + (0.16 if i % 2 else 0.0)
                top = y0 + h * (0.22, 0.34, 0.14, 0.28)[(k + i) % 4]
                pen.rect(x0, top, x0 + 0.05, y1, part, k % 2)
    pen.line([(0.225, 0.05), (0.225, 0.95)], 0.014, tone=-1)


@product_type(
    "wardrobe",
    "armoire",
    "closet",
    family="home",
    place="bedroom",
    materials="wood rattan plastic metal",
    patterned=0.0,
    doors=("two doors", "three doors"),
    base=("drawers below", "short feet"),
    front=("panelled", "mirrored"),
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
        part: Part = "light" if mirrored else "second"
        tone = -1 if mirrored else 0
        pen.rect(x0 + 0.05, 0.17, x0 + w - 0.05, bottom - 0.05, part, tone)
        pen.rect(x0 + w - 0.045, 0.40, x0 + w - 0.02, 0.52, "trim", 2)
    if style["base"] == "drawers below":
        pen.rect(0.17, 0.73, 0.495, 0.88, both=True)
        pen.rect(0.29, 0.79, 0.38, 0.82, "trim", 2, both=True)


@product_type(
    "dresser",
    "chest of drawers",
    "commode",
    family="home",
    place="bedroom",
    materials="wood rattan plastic metal",
    patterned=0.0,
    drawers=("six drawers", "three drawers"),
    knobs=("round knobs", "bar handles"),
    legs=("high legs", "plinth"),
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
    "rug",
    "carpet",
    "floor mat",
    family="home",
    place="living room",
    materials="wool cotton rattan",
    patterned=0.9,
    shape=("round", "rectangular", "runner"),
    border=("wide border", "fringed", "no border"),
)
def rug(pen: Pen, style: Style) -> None:
    if style["shape"] == "round":
        edge: dict[str, Part] = {"no border": "main", "wide border": "second", "fringed": "light"}
        pen.oval(0.07, 0.07, 0.93, 0.93, edge[style["border"]])
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
