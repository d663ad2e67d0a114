"""The vocabulary of the generated catalogue's text: what people call colours and materials, and the noise words."""

from __future__ import annotations

from data_prep.shop.shapes import TYPES

# Forms that fit only some shades carry them: (form, lowest shade, highest shade).
COLOUR_FORMS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "grey": (("grey", 0, 5), ("gray", 0, 5), ("charcoal", 0, 1), ("silver grey", 3, 5)),
    "blue": (("blue", 0, 5), ("navy", 0, 1), ("cobalt", 2, 3), ("baby blue", 4, 5)),
    "beige": (("beige", 0, 5), ("sand", 2, 5), ("cream", 5, 5), ("taupe", 0, 3)),
    "brown": (("brown", 0, 5), ("chocolate", 0, 1), ("tan", 3, 5), ("cognac", 2, 3)),
    "green": (("green", 0, 5), ("emerald", 1, 3), ("forest green", 0, 1), ("mint", 4, 5)),
    "red": (("red", 0, 5), ("burgundy", 0, 1), ("crimson", 1, 3), ("coral", 3, 4)),
    "pink": (("pink", 0, 5), ("rose", 2, 4), ("blush", 4, 5)),
    "teal": (("teal", 0, 5), ("petrol", 0, 2), ("aqua", 3, 5)),
    "yellow": (("yellow", 0, 5), ("mustard", 2, 3), ("lemon", 4, 5)),
    "purple": (("purple", 0, 5), ("aubergine", 0, 1), ("violet", 1, 3), ("lilac", 4, 5)),
    "orange": (("orange", 0, 5), ("rust", 0, 2), ("apricot", 4, 5), ("tangerine", 3, 3)),
    "olive": (("olive", 0, 5), ("khaki", 2, 4), ("moss", 0, 2)),
    "turquoise": (("turquoise", 0, 5), ("cyan", 3, 5), ("sky blue", 4, 5)),
    "magenta": (("magenta", 0, 5), ("fuchsia", 2, 4), ("raspberry", 0, 2)),
}
MATERIAL_FORMS: dict[str, tuple[str, ...]] = {
    "cotton": ("cotton", "jersey"),
    "linen": ("linen", "flax"),
    "wool": ("wool", "knit", "woollen"),
    "silk": ("silk", "satin"),
    "denim": ("denim", "chambray"),
    "leather": ("leather", "faux leather", "cowhide"),
    "velvet": ("velvet", "plush"),
    "nylon": ("nylon", "polyamide"),
    "plastic": ("plastic", "acrylic"),
    "metal": ("metal", "steel", "iron"),
    "wood": ("wood", "wooden", "timber", "oak"),
    "glass": ("glass", "crystal"),
    "ceramic": ("ceramic", "stoneware", "porcelain"),
    "rattan": ("rattan", "wicker", "woven cane"),
}
SHADE_FORMS = (
    ("very dark",),
    ("dark", "deep"),
    ("medium dark",),
    ("medium",),
    ("light", "pale"),
    ("very light", "pastel"),
)
PATTERN_FORMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "striped": ("striped", "stripy"),
    "pinstriped": ("pinstriped", "vertical striped"),
    "diagonal": ("diagonal striped",),
    "dotted": ("polka dot", "dotted", "spotted"),
    "checked": ("checked", "checkered"),
    "plaid": ("plaid", "tartan"),
    "floral": ("floral", "flower print"),
    "zigzag": ("chevron", "zigzag"),
    "colour block": ("colour block", "two-tone"),
}
BRANDS = ("Acme", "Nordvik", "Lumo", "Casa Bella", "Urban Thread", "Hearth & Co", "Zephyr", "Maison Clair",
          "Oakline", "Brightside", "Velora", "Kaito", "Finch", "Atelier Nine", "Stadt", "Mirabel")  # fmt: skip
SERIES = (
    "Nordic",
    "Classic",
    "Essential",
    "Luna",
    "Oslo",
    "Heritage",
    "Studio",
    "Milano",
    "Aria",
    "Original",
)
MARKETING = ("new", "sale", "best seller", "premium", "modern", "vintage style", "handmade", "limited edition",
             "gift idea", "free shipping")  # fmt: skip
BOILERPLATE = (
    "Free shipping on orders over $50.", "Easy 30 day returns.", "Machine washable.", "Wipe clean with a damp cloth.",
    "Designed in our own studio.", "Colours may differ slightly from the picture.", "Ships within 2 days.",
    "Join our newsletter for 10% off.", "Please check the measurements before you order.",
)  # fmt: skip
IRRELEVANT_BOARDS = (
    "my wishlist", "stuff i love", "misc", "to buy", "random", "birthday", "inspo", "2023 faves",
    "recipes to try", "dream house", "quotes", "save for later", "wedding", "tattoo ideas",
)  # fmt: skip
JUNK_ALT = (
    "IMG_{n}",
    "image",
    "photo {n}",
    "screenshot {n}.png",
    "DSC0{n}.jpg",
    "product image",
    "untitled",
)
SETTINGS = ("on a wooden floor", "at home", "in natural light", "on display", "seen from the front", "for sale",
            "in my room", "outdoors")  # fmt: skip


def plural(form: str) -> str:
    """The plural of a surface form by the rules of English that the catalogue's words need."""
    irregular = {"scarf": "scarves", "bookshelf": "bookshelves", "sunnies": "sunnies", "swimwear": "swimwear",
                 "wall art": "wall art", "chest of drawers": "chests of drawers"}  # fmt: skip
    if form in irregular:
        return irregular[form]
    head, _, last = form.rpartition(" ")
    if last in irregular:
        last = irregular[last]
    elif last.endswith(("ss", "sh", "ch", "x")):
        last += "es"
    elif not last.endswith("s"):
        last = last[:-1] + "ies" if last.endswith("y") and last[-2] not in "aeiou" else last + "s"
    return f"{head} {last}" if head else last


def synonyms() -> dict[str, list[str]]:
    """{concept: surface forms} of all types (singular and plural), colours and materials."""
    table: dict[str, list[str]] = {}
    for kind in TYPES:
        table[kind.name] = list(dict.fromkeys([*kind.forms, *map(plural, kind.forms)]))
    table.update({name: [form for form, _, _ in forms] for name, forms in COLOUR_FORMS.items()})
    table.update({name: list(forms) for name, forms in MATERIAL_FORMS.items()})
    return table
