"""Reads one table of a TOML file strictly: every key once, with its type, and no other keys."""

from lmseg_jax.errors import UserError

_MISSING = object()
_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
LONGEST = 400  # characters of a problem that a message shows


class Table:
    """One table of a card. Each key is taken once, with its type; `close` refuses what is left.

    Args:
      path: of the card's file, for messages.
      where: keys that lead to this table, each followed by a dot; "" for the file itself.
      values: the table.
    """

    def __init__(self, path: str, where: str, values: dict):
        self.path, self.where, self.values, self.known = path, where, dict(values), []

    def error(self, key: str, problem: str) -> UserError:
        """The error to raise: file, key, then what was found and expected."""
        if len(problem) > LONGEST:  # somebody's value is long; both ends say what matters
            problem = f"{problem[: LONGEST // 2]} ... {problem[-LONGEST // 2 :]}"
        return UserError(f"{self.path}: {self.where}{key} {problem}")

    def take(self, key: str, kind: type, default: object = _MISSING):
        """The value of a key, which must be of this kind; without `default` it must be there."""
        self.known.append(key)
        value = self.values.pop(key, default)
        if value is _MISSING:
            raise self.error(key, f"is missing; expected {_KINDS[kind]}")
        if value is default:
            return value
        wrong = isinstance(value, bool) and kind is not bool
        if wrong or not isinstance(value, (int, float) if kind is float else kind):
            raise self.error(key, f"is {value!r}; expected {_KINDS[kind]}")
        return value

    def text(self, key: str, default: object = _MISSING) -> str:
        """A string without spaces around it, not empty where it must be given."""
        value = self.take(key, str, default).strip()
        if not value and default is _MISSING:
            raise self.error(key, "is empty; expected a string")
        return value

    def texts(self, key: str, default: object = _MISSING) -> tuple[str, ...]:
        """A list of strings, none of them empty."""
        value = self.take(key, list, default)
        if not all(isinstance(text, str) and text.strip() for text in value):
            raise self.error(key, f"is {value!r}; expected a list of words")
        return tuple(text.strip() for text in value)

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """A string that is one of `known`."""
        value = self.text(key)
        if value not in known:
            raise self.error(key, f"is {value!r}; expected one of {', '.join(known)}")
        return value

    def number(self, key: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return self.check_number(key, self.take(key, int), low, high)

    def check_number(self, key: str, value: object, low: int, high: int) -> int:
        """The same for a value that was taken already."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"is {value!r}; expected a whole number from {low} to {high}")
        return value

    def numbers(self, key: str, low: int, high: int, default: object = _MISSING) -> tuple[int, ...]:
        """A list of whole numbers from `low` to `high`."""
        return tuple(
            self.check_number(f"{key}[{i}]", value, low, high)
            for i, value in enumerate(self.take(key, list, default))
        )

    def table(self, key: str, default: object = _MISSING) -> "Table":
        """A table inside this one."""
        return Table(self.path, f"{self.where}{key}.", self.take(key, dict, default))

    def close(self) -> None:
        """Refuses keys that nobody took."""
        for key in self.values:
            raise self.error(key, f"is not a key of a card; known here: {', '.join(self.known)}")
