"""Secret of the core group, as far as a gateway takes certificates from it."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from waypoint.resources.schema import Lenient, Text
from ztun.resources.schema import refuse

MAX_SECRET_CHARACTERS = 1_500_000  # Kubernetes allows 1 MiB of values, a third more in base64
MAX_SECRET_KEYS = 256

Value = Annotated[str, StringConstraints(max_length=MAX_SECRET_CHARACTERS)]


class SecretResource(Lenient):
    """A Secret. Values never appear in messages."""

    type: Text = ""
    data: Annotated[dict[Text, Value], Field(max_length=MAX_SECRET_KEYS, repr=False)] = Field(
        default_factory=dict
    )
    string_data: Annotated[dict[Text, Value], Field(max_length=MAX_SECRET_KEYS, repr=False)] = Field(
        default_factory=dict
    )

    @field_validator("data")
    @classmethod
    def _is_base64(cls, data: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for key, text in data.items():
            try:
                base64.b64decode(text, validate=False)
            except (binascii.Error, ValueError):
                raise refuse(f"{key} is not base64", "put plain text under stringData") from None
        return data

    def values(self) -> dict[str, bytes]:
        """Every value by its key; ``stringData`` comes before ``data``, as the API server has it."""
        decoded = {key: base64.b64decode(text) for key, text in self.data.items()}
        return decoded | {key: text.encode() for key, text in self.string_data.items()}
