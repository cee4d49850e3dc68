"""Models by the name they have on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(
    folder_or_id: str | os.PathLike[str], patterns: list[str], subfolder: str | None, revision: str | None
) -> Path:
    """The folder of that name or, if there is none, that of a model on the hub, of which the files that match are
    fetched, once.

    Raises:
        FileNotFoundError: there is neither, or the hub cannot be reached.
    """
    folder = Path(folder_or_id)
    if not folder.is_dir() and isinstance(folder_or_id, str) and _HUB_ID.fullmatch(folder_or_id):
        wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
        try:
            folder = Path(snapshot_download(folder_or_id, revision=revision, allow_patterns=wanted))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"there is no folder {folder_or_id}, and the hub has no such model to give: {error}"
            ) from error
    elif revision is not None:
        raise ValueError(f"revision is for models on the hub, but {folder_or_id} is no name there, or a folder")
    return folder / subfolder if subfolder else folder
