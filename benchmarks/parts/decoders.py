"""How fast stored items can be decoded at all, and by whom exactly: the limit of reading a history."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["DECODERS", "exact"]

Decoder = Callable[[Sequence[str]], list[Any]]

#: What must come back as it went in: each of these is a valid item of the library.
_HOSTILE = [
    '{"n":123456789012345678901234567890,"m":-9223372036854775809,"k":18446744073709551616}',
    '{"a":-0.0,"b":1e2,"c":1.0,"d":5e-324,"e":1.7976931348623157e308,"f":0.1,"g":100}',
    r'{"nul":"\u0000","lone":"\ud800","pair":"\ud83d\ude00"}',
    '{"z":1,"a":2,"m":{"y":1,"b":2}}',
    '{"deep":' + "[" * 499 + "]" * 499 + "}",
    json.dumps({"floats": [random.Random(seed).uniform(-1, 1) * 10.0**seed for seed in range(-300, 300)]}),
]


def _joined(loads: Callable[[str], Any]) -> Decoder:
    """Decode all at once: the texts become one JSON array."""
    return lambda texts: list(loads(f"[{','.join(texts)}]"))


def _each(loads: Callable[[str], Any]) -> Decoder:
    return lambda texts: [loads(text) for text in texts]


def _candidates() -> dict[str, Decoder]:
    """Fast decoders that refuse what they cannot read leave that to json: nothing is wrong then, only slower."""
    found: dict[str, Decoder] = {"json, each": _each(json.loads), "json, all at once": _joined(json.loads)}
    for module, function in (("pydantic_core", "from_json"), ("jiter", "from_json"), ("orjson", "loads")):
        try:
            decode = getattr(import_module(module), function)
        except ImportError:
            continue

        def loads(text: str, decode: Callable[[bytes], Any] = decode) -> Any:
            try:
                return decode(text.encode())
            except ValueError:
                return json.loads(text)

        found[f"{module} or json, each"] = _each(loads)
        found[f"{module} or json, all at once"] = _joined(loads)
    return found


DECODERS: Mapping[str, Decoder] = _candidates()


def exact(decoder: Decoder) -> bool:
    """Whether it decodes what the library promises to give back, value for value."""
    try:
        return all(repr(decoder([text])) == repr([json.loads(text)]) for text in _HOSTILE)
    except (ValueError, RecursionError):
        return False
