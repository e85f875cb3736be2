"""Records in SQL, and artifacts in a folder or an S3 bucket."""

from .folder import FolderStore
from .s3 import S3Settings, S3Store
from .sql import SqlRecords, migrate, open_engine
from .sql_access import SqlAccess

__all__ = ["FolderStore", "S3Settings", "S3Store", "SqlAccess", "SqlRecords", "migrate", "open_engine"]
