"""`pixtok …` where gs://… is a folder: $BUCKETS/BUCKET/….  Files appear whole when they are closed, and cannot grow.

The file system (fsspec) and TensorStore's driver are replaced, all between them and pixtok is as it is.
"""

import os
from typing import Any

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils

from pixtok.cli import main


class Buckets(DirFileSystem):
    protocol = ("gs", "gcs")

    def __init__(self, **_: Any) -> None:
        super().__init__(path=os.environ["BUCKETS"], fs=LocalFileSystem(auto_mkdir=True))

    def open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
        assert not {"a", "+"} & set(mode), f"{path} cannot grow"
        return super().open(path, mode, *args, **options)


def driver(path: str) -> dict[str, str]:
    bucket, inner = gcs_utils.parse_gcs_path(path, add_trailing_slash=False)
    return {"driver": "file", "path": os.path.join(os.environ["BUCKETS"], bucket, inner)}


fsspec.register_implementation("gcs", Buckets, clobber=True)
gcs_utils.get_kvstore_for_gcs = driver
gcs_utils.is_hierarchical_namespace_enabled = lambda path: False
main()
