"""What all resource models share: strict fields, bounded sizes, and text that stands for a duration.

Istio's own admission limits are not written down; these are generous for people and cheap for a proxy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from ztun.resources.schema import refuse

MAX_TEXT_CHARACTERS = 1024  # longer than any DNS name, label or file name that can work
MAX_RULES = 4096  # per section of one object; etcd refuses objects of 1.5 MiB, which is about this many
MAX_BLOCKS = 4096
MAX_LIST = 4096  # hosts, gateways, subnets, destinations
MAX_LABELS = 256
MAX_INTEGER = 2**63 - 1

Text: TypeAlias = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
Integer: TypeAlias = Annotated[StrictInt, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
TextList: TypeAlias = Annotated[tuple[Text, ...], Field(max_length=MAX_LIST)]
Labels: TypeAlias = Annotated[dict[Text, Text], Field(max_length=MAX_LABELS)]

_UNITS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
}
_UNITS |= {"s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,12})?(?:ns|us|µs|ms|s|m|h))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)


class Resource(BaseModel):
    """Base of the documents' parts: camelCase names, unknown fields refused, null the same as absent."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and any(value is None for value in data.values()):
            return {key: value for key, value in data.items() if value is not None}
        return data

    def has(self, *names: str) -> bool:
        """Whether any of these fields (Python names) was written."""
        return not self.model_fields_set.isdisjoint(names)


class Matching(Resource):
    """Base of parts where absent means "everything": a key whose value was commented out must not widen."""

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key, value in data.items():
                if value is None:
                    raise refuse(f"{key} has no value", "give it one or remove the key")
        return data


class Whole(Resource):
    """Base of whole documents: everything outside ``spec`` is the API server's business."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Lenient(Resource):
    """Base of parts whose other fields have no meaning at layer 4."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


def parse_duration(text: str) -> Fraction | None:
    """Seconds, exactly, of ``1.5s``, ``500ms`` or ``1m30s``; ``None`` when it is not a duration."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(
        (Fraction(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text)), Fraction(0)
    )
