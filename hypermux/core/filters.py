"""Event filters: parse, encode, match, as the Docker Engine and Hyper's servers do.

Different fields AND; the values of one field OR, but labels AND. Three kinds of match:

    exact    event, type, scope, image    the value's boolean counts: false disables it
    prefix   container, network, volume…  exact on, or prefix of, Actor.ID or Attributes.name
    label    label                        `k` present, `k=` empty, `k=v` exactly v

One odd rule of the Engine is kept: when a value of `event` is exactly `health_status`,
`exec_create` or `exec_start`, every value of `event` matches as a prefix. Prefix and label
matches ignore the boolean. A field without values filters nothing.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from attrs import Factory, define, field, frozen

Values: TypeAlias = tuple[tuple[str, bool], ...]

HYPER_FIELDS = frozenset({"container", "event", "image", "label"})
DOCKER_FIELDS = HYPER_FIELDS | {
    "config", "daemon", "network", "node", "plugin", "scope", "secret", "service", "type", "volume",
}  # fmt: skip

# Matched as a prefix of the actor's id or name, whatever the event's own type.
_NAMED = frozenset({
    "config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume",
})  # fmt: skip
_PREFIX_EVENTS = ("health_status", "exec_create", "exec_start")

_FLAG_FORM = "a filter is written key=value, for example event=start"
_JSON_FORM = 'filters are written {"event":{"start":true}} or {"event":["start"]}'


class FilterError(ValueError):
    """A filter that does not parse: one clear sentence that says what would be right."""


@frozen
class Filters:
    """What to select: fields in the order given, each with its (value, enabled) pairs.

    An empty one selects every event. Use the named constructors: they check, drop fields
    without values and join fields given twice.
    """

    fields: tuple[tuple[str, Values], ...] = ()
    _values: Mapping[str, Mapping[str, bool]] = field(
        init=False,
        repr=False,
        eq=False,
        hash=False,
        default=Factory(lambda self: {k: dict(v) for k, v in self.fields}, takes_self=True),
    )

    @classmethod
    def parse_flags(cls, flags: Sequence[str], *, fields: Iterable[str] = DOCKER_FIELDS) -> Filters:
        r"""Read command line filters: `key=value`, several joined by commas, `\,` a literal comma.

        A label may be written `""` or `""=value` for the empty key, which a shell hardly gives
        otherwise. Raises FilterError.
        """
        known = sorted(fields)
        gathered: dict[str, dict[str, bool]] = {}
        for flag in flags:
            for part in _split_commas(flag) if flag else ():
                key, equals, value = part.partition("=")
                key = key.strip()
                if not equals:
                    raise FilterError(f"{part!r} has no '=': {_FLAG_FORM}")
                _check_field(key, known)
                gathered.setdefault(key, {})[_written(key, value)] = True
        return cls._of(gathered)

    @classmethod
    def parse_json(cls, text: str, *, fields: Iterable[str] | None = DOCKER_FIELDS) -> Filters:
        """Read the value of a `filters` query parameter: the map form or the list form.

        Empty text is no filter. `fields` None takes any field, as the Engine does: those that it
        does not know select nothing and everything. Raises FilterError.
        """
        if not text:
            return cls()
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            raise FilterError(f"filters are not JSON: {_JSON_FORM}") from None
        if not isinstance(parsed, dict):
            raise FilterError(f"filters are not a JSON object: {_JSON_FORM}")
        known = None if fields is None else sorted(fields)
        gathered: dict[str, dict[str, bool]] = {}
        for key, values in parsed.items():
            if known is not None:
                _check_field(key, known)
            if isinstance(values, dict) and all(isinstance(v, bool) for v in values.values()):
                gathered[key] = values
            elif isinstance(values, list) and all(isinstance(v, str) for v in values):
                gathered[key] = dict.fromkeys(values, True)
            else:
                raise FilterError(
                    f"the values of filter {key!r} have the wrong shape: {_JSON_FORM}"
                )
        if len({type(values) for values in parsed.values()}) > 1:
            raise FilterError(f"filters mix the map form and the list form: {_JSON_FORM}")
        return cls._of(gathered)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Sequence[str]], *, fields: Iterable[str] = DOCKER_FIELDS
    ) -> Filters:
        """Take lists of values by field name, as in a configuration file. Raises FilterError."""
        known = sorted(fields)
        gathered: dict[str, dict[str, bool]] = {}
        for key, values in mapping.items():
            _check_field(key, known)
            listed = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
            if not listed or not all(isinstance(v, str) for v in values):
                raise FilterError(f'filter {key!r} needs a list of texts, for example ["start"]')
            gathered[key] = {_written(key, v): True for v in values}
        return cls._of(gathered)

    @classmethod
    def _of(cls, gathered: Mapping[str, Mapping[str, bool]]) -> Filters:
        for values in gathered.values():
            for value in values:
                if any("\ud800" <= c <= "\udfff" for c in value):
                    raise FilterError(f"the filter value {value!r} is not valid Unicode text")
        return cls(tuple((k, tuple(v.items())) for k, v in gathered.items() if v))

    def __bool__(self) -> bool:
        return any(values for _, values in self.fields)

    def encode(self) -> str:
        """Return the compact JSON that a server parses, keys sorted; "" when there is no filter.

        The bytes are those of the original client: Go writes `&`, `<` and `>` as escapes.
        """
        if not self:
            return ""
        tree = {key: values for key, values in self._values.items() if values}
        text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        for plain in "&<>\u2028\u2029":
            text = text.replace(plain, f"\\u{ord(plain):04x}")
        return text

    def query(self) -> str:
        """Return the raw query for a request, `filters=…` percent-encoded, or ""."""
        return f"filters={quote(self.encode(), safe='')}" if self else ""

    def matches(self, event: Mapping[str, Any], *, image_ids: Sequence[str] = ()) -> bool:
        """Say whether a parsed event (Docker, dialect A or B) is selected.

        `image_ids` are the forms of a container's image id that an `image` value may name; the
        event does not carry them, so only a server that knows its containers has any. In
        dialect B `event` looks at Action and at Status, names and images are found under
        their capitalised keys, and labels under Attributes.Labels too.
        """
        return not self._values or self.select(Subject.of(event), image_ids)

    def select(self, subject: Subject, image_ids: Sequence[str] = ()) -> bool:
        """Say whether an event is selected of which this is what filters look at."""
        return _matches(self._values, subject, image_ids)


@define
class Subject:
    """What filters look at in an event, whichever its dialect."""

    type: str
    scope: str
    actions: tuple[str, ...]
    id: str
    name: str
    image: str
    labels: Mapping[str, Any]

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Subject:
        """Find it in a parsed event: Docker's, or dialect A or B."""
        actor = _mapping(event.get("Actor"))
        attributes = _mapping(actor.get("Attributes"))
        kind = _text(event, "Type")
        labels: Mapping[str, Any] = attributes
        actions: tuple[str, ...] = (_text(event, "Action") or _text(event, "status"),)
        if isinstance(event.get("Status"), str):  # dialect B has a state beside its action
            actions = (*actions, event["Status"])
            labels = {**attributes, **_mapping(attributes.get("Labels"))}
        if kind == "image":
            image = _text(attributes, "name")
        else:
            image = (
                _text(attributes, "image", "Image") or _text(event, "from") or _text(event, "From")
            )
        return cls(
            type=kind,
            scope=_text(event, "scope"),
            actions=actions,
            id=_text(actor, "ID", "Id") or _text(event, "id", "Id"),
            name=_text(attributes, "name", "Name"),
            image=image,
            labels=labels,
        )


def _matches(
    fields: Mapping[str, Mapping[str, bool]], subject: Subject, image_ids: Sequence[str]
) -> bool:
    for name, values in fields.items():
        match name:
            case "event":
                compare = _fuzzy if any(value in values for value in _PREFIX_EVENTS) else _exact
                selected = any(compare(values, action) for action in subject.actions)
            case "type":
                selected = _exact(values, subject.type)
            case "label":
                selected = all(_has_label(subject.labels, label) for label in values)
            case "image":
                selected = _has_image(values, subject, image_ids)
            case "scope":
                selected = _exact(values, subject.scope)
            case _ if name in _NAMED:
                selected = _fuzzy(values, subject.id) or _fuzzy(values, subject.name)
            case _:
                selected = True
        if not selected:
            return False
    return True


def _has_image(values: Mapping[str, bool], subject: Subject, image_ids: Sequence[str]) -> bool:
    names = (subject.id, subject.image, strip_tag(subject.id), strip_tag(subject.image))
    return any(_exact(values, name) for name in (*names, *image_ids))


def _exact(values: Mapping[str, bool], text: str) -> bool:
    return not values or values.get(text, False)


def _fuzzy(values: Mapping[str, bool], text: str) -> bool:
    # A reader may give thousands of values: one by one they are a millisecond for each event.
    return _exact(values, text) or text.startswith(tuple(values))


def _has_label(labels: Mapping[str, Any], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    if key not in labels:
        return False
    found = labels[key]
    return not equals or value == ("" if found is None else found)


# The Engine's reference grammar, as far as it decides what a tag is.
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PART}(?:/{_PART})*)"
    rf"(?::\w[\w.-]{{0,127}})?(?:@{_DIGEST})?",
    re.ASCII,
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


def strip_tag(image: str) -> str:
    """Return an image's familiar name without tag and digest; what is no reference, as it is.

    `docker.io/library/busybox:1` is `busybox`, `lab:5000/app:2` is `lab:5000/app`.
    """
    if len(image) > 1024 or _IDENTIFIER.fullmatch(image):
        return image  # no reference is that long; a bare 64-digit id is none either
    first, slash, rest = image.partition("/")
    is_domain = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not is_domain:
        first, rest = "docker.io", image
    elif first == "index.docker.io":
        first = "docker.io"
    found = _REFERENCE.fullmatch(f"{first}/{rest}")
    if found is None or found["domain"] is None:
        return image
    path = found["path"]
    if found["domain"] != "docker.io":
        return f"{found['domain']}/{path}"
    inner = path.removeprefix("library/")
    return path if "/" in inner else inner


def _split_commas(flag: str) -> list[str]:
    return [part.replace(r"\,", ",") for part in re.split(r"(?<!\\),", flag)]


def _written(key: str, value: str) -> str:
    """Return a value as a person writes it in the form that goes to a server."""
    if key == "label" and (value == '""' or value.startswith('""=')):
        return value[2:]
    return value


def _check_field(key: str, known: Sequence[str]) -> None:
    if not key:
        raise FilterError(f"a filter has an empty key: {_FLAG_FORM}")
    if key not in known:
        near = difflib.get_close_matches(key.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise FilterError(f"unknown filter {key!r}: {hint}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _text(mapping: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = mapping.get(name)
        if isinstance(value, str):
            return value
    return ""
