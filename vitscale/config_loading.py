"""From a config file and `--config.key=value` overrides to a checked dataclass, with errors in words."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import ml_collections

from vitscale.errors import UserError

T = TypeVar("T")


def load_config(schema: type[T], spec: str, overrides: Sequence[str] = ()) -> T:
    """Reads `spec` ("configs/x.py", or "configs/x.py:argument" for `get_config(argument)`) and applies overrides.

    Overrides are `key.path=value`, for example `optim.lr=3e-4` or `tasks.0.weight=2`.
    Raises `UserError` for a missing file, an unknown key (naming the nearest one) or a value of the wrong type.
    """
    tree = to_plain(read_config_file(spec))
    for override in overrides:
        apply_override(tree, override, schema)
    return from_mapping(schema, tree)


def read_config_file(spec: str) -> ml_collections.ConfigDict:
    """Runs the file's `get_config()`."""
    return call_of_file(spec, "config", "get_config", "return an ml_collections.ConfigDict")


def call_of_file(spec: str, kind: str, function: str, gives: str) -> Any:
    """What `function()` of the Python file `spec` gives, or `function(argument)` of "file.py:argument".

    kind, gives: what such a file is called, and what the function is there for, in errors. Raises `UserError` for a
    file that is missing, is not Python, lacks the function or fails.
    """
    name, _, argument = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{kind} file {name} does not exist (working folder: {Path.cwd()}).")
    module_spec = importlib.util.spec_from_file_location(f"_vitscale_{kind}_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{kind} file {name} is not a Python file; it must end in .py.")
    module = importlib.util.module_from_spec(module_spec)
    with failure_named(f"{kind} file {name}"):
        module_spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise UserError(f"{kind} file {name} has no {function}(); it must {gives}.")
    with failure_named(f"{function}() of {name}"):
        return getattr(module, function)(*([argument] if argument else []))


@contextlib.contextmanager
def failure_named(what: str) -> Iterator[None]:
    """What a user's own code raises is the user's error, named after the code."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} cannot be run: {type(error).__name__}: {error}.") from error


def to_plain(value: Any) -> Any:
    """ConfigDicts, dataclasses, tuples and nested dicts as plain dicts and lists."""
    if isinstance(value, ml_collections.ConfigDict):
        # Iterating keys keeps FieldReferences resolved.
        return {key: to_plain(value[key]) for key in value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def to_json(config: Any) -> str:
    """The resolved config as JSON, keys in the schema's order. `from_mapping` reads it back to an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def apply_override(tree: dict[str, Any], override: str, schema: type) -> None:
    """Sets one `key.path=value` in a plain tree; the schema decides how the text is read."""
    path, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override --config.{override} has no value; write --config.{path}=VALUE.")
    keys = path.split(".")
    node: Any = tree
    annotation: Any = schema
    for depth, key in enumerate(keys):
        where = ".".join(keys[:depth])
        annotation = _child_annotation(annotation, key, where)
        index: Any = key
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise UserError(
                    f"override {path}: {where} has {len(node)} entries; use an index below that."
                )
            index = int(key)
        if depth == len(keys) - 1:
            node[index] = _parse_text(text, annotation)
        else:
            if isinstance(node, dict) and not isinstance(node.get(key), (dict, list)):
                node[key] = {}
            node = node[index]


def from_mapping(schema: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """Builds dataclass `schema` from a plain mapping, checking every key and type."""
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{where or 'the config'} must be a mapping, not {type(tree).__name__} {tree!r}."
        )
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, schema))}
    for key in tree:
        if key not in fields:
            raise UserError(_unknown_key(str(key), list(fields), where))
    values: dict[str, Any] = {}
    for name, f in fields.items():
        path = f"{where}.{name}" if where else name
        if name in tree:
            values[name] = _convert(tree[name], hints[name], path)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{path} is missing; the config must set it.")
    return schema(**values)


def _convert(value: Any, annotation: Any, path: str) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, typing.cast(type, annotation)):
            return value
        return from_mapping(typing.cast(type, annotation), value, path)
    if origin is Literal:
        if value not in args or isinstance(value, bool) not in {isinstance(a, bool) for a in args}:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{path}={value!r} must be one of {', '.join(map(repr, args))}{hint}")
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path} must be a list, not {type(value).__name__} {value!r}.")
        if args[-1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(value) != len(args):
            raise UserError(f"{path}={list(value)} must have {len(args)} values, not {len(value)}.")
        return tuple(
            _convert(item, arg, f"{path}.{i}")
            for i, (item, arg) in enumerate(zip(value, args, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{path} must be a mapping, not {type(value).__name__} {value!r}.")
        return {k: _convert(item, args[1], f"{path}.{k}") for k, item in value.items()}
    if annotation is Any:
        return value
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool):
        raise UserError(
            f"{path}={value!r} must be of type {annotation.__name__}, not {type(value).__name__}."
        )
    return value


def _convert_union(value: Any, args: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [arg for arg in args if arg is not type(None)]
    if len(options) == 1:
        return _convert(value, options[0], path)
    for option in options:
        try:
            return _convert(value, option, path)
        except UserError:
            continue
    forms = " or ".join(_form(arg) for arg in args)
    # A list may be of the right type and still too long: then its type would be no explanation.
    wrong = "" if isinstance(value, (list, tuple)) else f", not {type(value).__name__}"
    raise UserError(f"{path}={value!r} must be of type {forms}{wrong}.")


def _form(annotation: Any) -> str:
    """What a message calls values of a type: "int", "a list of 2 int values"."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"a list of {count}{_form(args[0])} values"
    if dataclasses.is_dataclass(annotation) or isinstance(origin, type):
        return "a mapping"
    return annotation.__name__


def _child_annotation(annotation: Any, key: str, where: str) -> Any:
    """The type of `key` below `annotation`; raises for keys that the schema does not have."""
    annotation = _strip_optional(annotation)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        if key not in hints:
            raise UserError(_unknown_key(key, list(hints), where))
        return hints[key]
    if origin is tuple:
        return args[0]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return args[1]
    raise UserError(f"override {where}.{key}: {where} is a single value and has no key {key!r}.")


def _strip_optional(annotation: Any) -> Any:
    rest = [option for option in _options(annotation) if option is not type(None)]
    return rest[0] if len(rest) == 1 else annotation


def _parse_text(text: str, annotation: Any) -> Any:
    """Reads the text of an override: strings stay as they are, everything else is a Python literal.

    Where a string is one of several forms (`int | str`), a literal of another form is that, and all else is text.
    """
    options = _options(annotation)
    if type(None) in options and text in ("None", "none", ""):
        return None
    targets = [option for option in options if option is not type(None)]
    if all(target is str or typing.get_origin(target) is Literal for target in targets):
        return text
    if bool in targets and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = to_plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text  # the type check that follows says what is wrong with it
    others = [target for target in targets if target is not str]
    return value if others == targets or _is_one_of(value, others) else text


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_one_of(value: Any, annotations: Sequence[Any]) -> bool:
    for annotation in annotations:
        try:
            _convert(value, annotation, "")
        except UserError:
            continue
        return True
    return False


def _unknown_key(key: str, known: list[str], where: str) -> str:
    place = f" in {where}" if where else ""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
    return f"unknown config key {key!r}{place}: {hint}"
