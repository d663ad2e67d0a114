"""Walking the operations of a traced function."""


def equations(jaxpr):
    """Every equation of a jaxpr and of the jaxprs inside of it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)
