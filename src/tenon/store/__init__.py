"""Memory: the only place that remembers. A catalog (SQLite, or PostgreSQL for a team) and content-addressed blobs.

    with Store.open(Path("project")) as store:
        digest = store.blobs.put(b"...")
        store.put("dataset", "flights", {"file": digest})

`store.py` is what rooms use; `catalog.py` runs SQL in either database (`sqlite.py`, `postgres.py`), `schema.py` holds
all tables, `blobs.py` and `bucket.py` keep bytes in a folder or an object store, `care.py` collects and checks. Others
give it plain data: it knows no room's types but the ledger's `Entry`.
"""

from tenon.store.care import Garbage
from tenon.store.store import Batch, Store

__all__ = ["Batch", "Garbage", "Store"]
