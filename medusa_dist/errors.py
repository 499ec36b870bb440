"""All exceptions of the project, grouped by who has to act.

Owns the exception classes, each with HTTP status and retry hint. Not here: the mapping to a response body
(api/convert.py). All arguments go to the base class, so that errors survive pickling between Ray processes.
"""


class MedusaError(Exception):
    """Base of all errors below; `message` says what is wrong and how to fix it."""

    status = 500
    kind = "server_error"

    @property
    def message(self) -> str:
        """The text for the user."""
        return str(self.args[0]) if self.args else type(self).__name__

    def __str__(self) -> str:
        return self.message


class ConfigError(MedusaError):
    """An invalid configuration; raised before any expensive work. Names the key and the fix."""


class ModelError(ConfigError):
    """A model that is missing, cannot be read, or cannot be served."""


class HubUnreachableError(ModelError):
    """A hub id of which nothing is on this machine, while the hub cannot be reached."""


class HeadsError(ConfigError):
    """Draft heads that are missing, cannot be read, or do not fit the base model."""


class StepLogError(ConfigError):
    """A step log that cannot be written or read."""


class RequestError(MedusaError):
    """The request is invalid; the engine continues. `param` names the field as the client spelled it."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)

    @property
    def param(self) -> str | None:
        """The invalid field, or None."""
        return self.args[1]  # type: ignore[no-any-return]

    @property
    def code(self) -> str | None:
        """OpenAI's machine-readable code, such as `context_length_exceeded`."""
        return self.args[2]  # type: ignore[no-any-return]


class UnauthorizedError(RequestError):
    """The API key is missing or wrong."""

    status = 401
    kind = "authentication_error"


class NotFoundError(RequestError):
    """The named model or route does not exist."""

    status = 404


class ForbiddenError(RequestError):
    """A web page that may not do this has sent the request."""

    status = 403


class ConflictError(RequestError):
    """The named thing is in a state in which this cannot be done."""

    status = 409


class BodyTooLargeError(RequestError):
    """The request body exceeds the limit."""

    status = 413


class ContentEncodingError(RequestError):
    """The request body is encoded in a way that the service does not decode."""

    status = 415


class StorageError(MedusaError):
    """The store of files and batches is off, cannot be reached, or is full; names the key or the cause."""

    status = 507


class StorageOffError(StorageError):
    """There is no store of files and batches; names the key that makes one."""

    status = 501


class EngineError(MedusaError):
    """The service cannot respond now; the request is valid. `retry_after_s` is a hint for the client."""

    status = 503

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)

    @property
    def retry_after_s(self) -> float:
        """Seconds after which a retry makes sense."""
        return self.args[1]  # type: ignore[no-any-return]


class OverloadedError(EngineError):
    """The request queue is full."""

    status = 429
    kind = "rate_limit_error"


class GroupError(EngineError):
    """A rank of the tensor-parallel group died, hung, or could not start; names the rank and the operation."""
