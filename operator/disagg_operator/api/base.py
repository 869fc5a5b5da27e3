"""Base of the API's models and the small types that several of them share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from disagg_operator.api.rules import DURATION, Extra, rule, rules


class ApiModel(BaseModel):
    """Unknown fields are ignored: a newer CRD may be installed beside an older operator."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore"
    )


Duration = Annotated[
    str,
    Field(
        max_length=16,
        json_schema_extra=rules(
            rule(
                f"self.matches(r'{DURATION}')"
                " && duration(self) > duration('0s') && duration(self) <= duration('24h')",
                "duration %s must be above 0s and at most 24h, such as 500ms or 1m30s",
                "self",
            )
        ),
    ),
]

_BYTES = "^[1-9][0-9]*([KMGT]i|[kMGT])?$"
# The API server's own pattern for quantities lets int or string through; the range is its business.
Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[mkMGTPE])?$",
        }
    ),
]

_AS_QUANTITY = "quantity(type(self) == int ? string(self) : self)"
Bytes = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "maxLength": 20,
            **rules(
                rule(
                    f"(type(self) == int || self.matches('{_BYTES}')) &&"
                    f" {_AS_QUANTITY}.compareTo(quantity('1Mi')) >= 0 &&"
                    f" {_AS_QUANTITY}.compareTo(quantity('16Ti')) <= 0",
                    "%s must be a whole number of bytes from 1Mi to 16Ti, such as 64Mi or 4Gi",
                    "self",
                )
            ),
        }
    ),
]


def _amount(least: int) -> Extra:
    """A number of groups or a percentage of them, `least` or more."""
    return {
        "x-kubernetes-int-or-string": True,
        "maxLength": 6,
        **rules(
            rule(
                f"type(self) == int ? self >= {least} && self <= 1000 :"
                f" self.matches('^[{least}-9][0-9]{{0,2}}%$')",
                f"%s must be a number of groups from {least} to 1000 or a percentage, such as 1 or"
                " 25%%",
                "self",
            )
        ),
    }


Amount = Annotated[int | str, Field(json_schema_extra=_amount(0))]
PositiveAmount = Annotated[int | str, Field(json_schema_extra=_amount(1))]
Replicas = Annotated[int, Field(ge=0, le=1000)]
Port = Annotated[int, Field(ge=1, le=65535)]
Argument = Annotated[str, Field(min_length=1, max_length=1024)]
Image = Annotated[str, Field(min_length=1, max_length=512)]
