"""Models in Anthropic's form: the list, a page of it, and one.

Owns that form. Not here: the routes, which both APIs share (api/http/service_routes.py).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from medusa_dist.api.service import Service
from medusa_dist.errors import RequestError

_LARGEST_PAGE = 1000
_LIFECYCLES = ("active", "deprecated", "retired")


def model_info(service: Service) -> dict[str, Any]:
    """The served model. Its limits are those of the context, which prompt and output share."""
    return {
        "type": "model",
        "id": service.name,
        "display_name": service.name,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "capabilities": None,
        "max_input_tokens": service.max_model_len,
        "max_tokens": service.max_model_len,
    }


def model_page(models: Sequence[dict[str, Any]], query: Mapping[str, str], lifecycles: Sequence[str]) -> dict[str, Any]:
    """A page of models, which are all active. query: limit, after_id or before_id. lifecycles: those asked for.

    Raises RequestError, naming the parameter.
    """
    for lifecycle in lifecycles:
        if lifecycle not in _LIFECYCLES:
            raise RequestError(f"lifecycle must be one of {', '.join(_LIFECYCLES)}", "lifecycle")
    found = list(models) if "active" in (lifecycles or _LIFECYCLES) else []
    if "after_id" in query and "before_id" in query:
        raise RequestError("after_id and before_id exclude each other; remove one of them", "after_id")
    limit = _limit(query.get("limit", "20"))
    if "before_id" in query:
        before = found[: _place(found, query["before_id"], "before_id")]
        page, has_more = before[-limit:], len(before) > limit
    else:
        start = _place(found, query["after_id"], "after_id") + 1 if "after_id" in query else 0
        page, has_more = found[start : start + limit], len(found) > start + limit
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"data": page, "has_more": has_more, "first_id": first, "last_id": last}


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= _LARGEST_PAGE):
        raise RequestError(f"limit must be a number from 1 to {_LARGEST_PAGE}", "limit")
    return int(text)


def _place(models: Sequence[dict[str, Any]], model_id: str, name: str) -> int:
    """The index of the model that a cursor names."""
    places = [i for i, model in enumerate(models) if model["id"] == model_id]
    if not places:
        raise RequestError(f"{name}: there is no model {model_id[:80]!r}", name)
    return places[0]
