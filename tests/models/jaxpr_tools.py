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


def activation_products(jaxpr):
    """The matrix products; bias vectors times a matrix are of parameters alone, and float32."""
    products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    return [e for e in products if all(v.aval.ndim > 1 for v in e.invars)]
