"""Reading what a client sent: camelCase or snake_case, lenient about types as pydantic is."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from .errors import ValidationError

__all__ = ["Fields"]

_TRUE = {"true", "1", "yes", "on", "t", "y"}
_FALSE = {"false", "0", "no", "off", "f", "n"}


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: "_" + match.group().lower(), name)


class Fields:
    """One JSON object, or the query string, read field by field; the first fault raises."""

    def __init__(
        self, data: Mapping[str, Any], location: str = "body", parents: tuple[str, ...] = ()
    ) -> None:
        self._data = data
        self._location = location
        self._parents = parents

    def get(self, name: str) -> Any:
        for key in (name, _snake(name)):
            if self._data.get(key) is not None:
                return self._data[key]
        return None

    def refuse(self, name: str, text: str, kind: str, given: Any = None) -> ValidationError:
        return ValidationError(self._location, (*self._parents, name), text, kind, given)

    def _required(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise self.refuse(name, "Field required", "missing", dict(self._data))
        return value

    def child(self, name: str) -> "Fields":
        value = self._required(name)
        if not isinstance(value, Mapping):
            raise self.refuse(name, "Input should be a valid dictionary", "dict_type", value)
        return Fields(value, self._location, (*self._parents, name))

    def text(self, name: str) -> str:
        value = self._required(name)
        if not isinstance(value, str):
            raise self.refuse(name, "Input should be a valid string", "string_type", value)
        return value

    def maybe_text(self, name: str) -> str | None:
        return None if self.get(name) is None else self.text(name)

    def maybe_integer(self, name: str) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        try:
            return int(value)
        except (TypeError, ValueError):
            text = "Input should be a valid integer, unable to parse string as an integer"
            raise self.refuse(name, text, "int_parsing", value) from None

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        word = str(value).lower()
        if word not in _TRUE | _FALSE:
            text = "Input should be a valid boolean, unable to interpret input"
            raise self.refuse(name, text, "bool_parsing", value)
        return word in _TRUE

    def choice(self, name: str, options: Collection[str], default: str) -> str:
        value = self.get(name)
        if value is None:
            return default
        if value not in options:
            *most, last = [f"'{option}'" for option in options]
            raise self.refuse(name, f"Input should be {', '.join(most)} or {last}", "enum", value)
        return str(value)
