"""Records in SQL and artifacts in a folder."""

from .folder import FolderStore
from .sql import SqlRecords, migrate, open_engine

__all__ = ["FolderStore", "SqlRecords", "migrate", "open_engine"]
