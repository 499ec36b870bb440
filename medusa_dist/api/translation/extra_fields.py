"""ExtraFields: fields of chat requests that are honoured in the same form in other APIs.

Owns their list. Not here: their types (api/schema/common_fields.py), their meaning (sampling_params.py, request.py).
"""

from collections.abc import Mapping
from typing import Any

from medusa_dist.api.schema.common_fields import CommonFields
from medusa_dist.api.schema.fields import CHAT_FIELDS, Rule


class ExtraFields(CommonFields):
    """Base of request models that are translated to a chat request."""

    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None


EXTRA_FIELDS: Mapping[str, Rule] = {name: CHAT_FIELDS[name] for name in ExtraFields.model_fields}


def given_extras(body: ExtraFields) -> dict[str, Any]:
    """The extra fields that a request has, for the body of a chat request."""
    values = body.model_dump(include=set(EXTRA_FIELDS), exclude_none=True, by_alias=True)
    return {name: values[name] for name in EXTRA_FIELDS if name in values}
