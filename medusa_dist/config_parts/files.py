"""Config keys of /v1/files and /v1/batches: where files are kept, and how many.

Owns these keys and their checks. Not here: the store (storage/), the routes (api/files/, api/batches/).
"""

from typing import Annotated

from pydantic import Field, model_validator

from medusa_dist.config_parts.strict import Strict

AUTO, OFF = "auto", "off"


class FilesConfig(Strict):
    """Where /v1/files and /v1/batches keep what they are given, and its limits."""

    store: Annotated[str, Field(min_length=1)] = Field(
        default=AUTO,
        description="Folder, or a URL of fsspec such as s3://bucket/path. auto: a folder of the user who serves, on "
        "a cluster of one node; on several the routes are off, because replicas would not see each other's files. off: "
        "the routes answer with an error that names this key. Each served model has its own part of it.",
    )
    max_file_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=200 * 1024**2,
        description="Size of an uploaded file, in bytes; a larger one gets 413. The default is OpenAI's limit for a "
        "batch. http.max_body_bytes does not apply to uploads.",
    )
    max_total_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=20 * 1024**3,
        description="Size of all that is kept for this model, in bytes, outputs included. Beyond it uploads are "
        "refused until files are deleted; outputs of running batches are still written.",
    )
    max_batch_lines: Annotated[int, Field(ge=1)] = Field(
        default=50_000, description="Lines of one batch; a batch with more fails. The default is OpenAI's."
    )

    @model_validator(mode="after")
    def _a_file_fits(self) -> "FilesConfig":
        if self.max_file_bytes > self.max_total_bytes:
            raise ValueError(
                f"files.max_file_bytes ({self.max_file_bytes}) must be at most files.max_total_bytes "
                f"({self.max_total_bytes})"
            )
        return self
