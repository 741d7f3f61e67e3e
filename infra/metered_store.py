"""An object store that counts what a client moves through it: the bodies of objects, by kind, repeats included.

Not here: who believes the counts, and within which bounds (`booking`). Not counted are headers, listings, questions
for a size, error answers, the probe of what a store honours, and what the store's own client sends or reads once more
within one call, after a lost answer or a cut body.
"""

from collections import Counter

from infra.object_store import ObjectInfo, ObjectStore, PresignedPut, StoreCapabilities
from tasks.rounds.ledger import kind_of


class Meter:
    """What one attempt of a client moved so far; lives as long as the attempt, over repeated tries of its steps.

    Plain on purpose: Prefect hands it to a task as it is. One thread uses it at a time.
    """

    def __init__(self) -> None:
        self._downloaded: Counter[str] = Counter()
        self._uploaded: Counter[str] = Counter()

    @property
    def downloaded(self) -> dict[str, int]:
        """Kind of object -> bytes that came [bytes]."""
        return dict(self._downloaded)

    @property
    def uploaded(self) -> dict[str, int]:
        """Kind of object -> bytes that went [bytes]."""
        return dict(self._uploaded)

    def came(self, key: str, num_bytes: int) -> None:
        """Count a download.

        Args:
            key: What.
            num_bytes: Its size [bytes].
        """
        self._downloaded[kind_of(key)] += num_bytes

    def went(self, key: str, num_bytes: int) -> None:
        """Count an upload.

        Args:
            key: What.
            num_bytes: Its size [bytes].
        """
        self._uploaded[kind_of(key)] += num_bytes


class MeteredStore:
    """An `ObjectStore` that counts on the way to another one.

    Args:
        inner: The store that keeps the objects.
        meter: Where to count.
    """

    def __init__(self, inner: ObjectStore, meter: Meter) -> None:
        self._inner, self._meter = inner, meter

    @property
    def url(self) -> str:
        """The URL of the store that keeps the objects."""
        return self._inner.url

    @property
    def capabilities(self) -> StoreCapabilities:
        """What that store honours."""
        return self._inner.capabilities

    def put(self, key: str, data: bytes) -> None:
        """Write an object; counted even where it fails, because by then its body was most likely sent."""
        self._meter.went(key, len(data))
        self._inner.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless its key is taken; counted in any case, because S3 refuses after the body was sent."""
        self._meter.went(key, len(data))
        return self._inner.create(key, data)

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return self._counted(key, self._inner.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read a part of an object."""
        return self._counted(key, self._inner.get_range(key, start, length))

    def size(self, key: str) -> int | None:
        """Return an object's length [bytes], or None."""
        return self._inner.size(key)

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Return all objects whose key begins with `prefix`, sorted by key."""
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        """Remove an object, if there is one."""
        self._inner.delete(key)

    def presign_get(self, key: str, expires_s: int) -> str:
        """Return a URL that reads one object; what is read by it is not counted."""
        return self._inner.presign_get(key, expires_s)

    def presign_put(self, key: str, *, length: int, md5_base64: str, expires_s: int) -> PresignedPut:
        """Return leave to create one object; what is written by it is not counted."""
        return self._inner.presign_put(key, length=length, md5_base64=md5_base64, expires_s=expires_s)

    def _counted(self, key: str, data: bytes) -> bytes:
        self._meter.came(key, len(data))
        return data
