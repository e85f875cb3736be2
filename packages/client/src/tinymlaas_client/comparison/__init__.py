"""Compare compilers: the races of a model over many targets, the peer's figures, charts and a page that shows them."""

from tinymlaas_client.comparison.charts import Bar, Point, bars, scatter, stacked, standalone
from tinymlaas_client.comparison.page import page
from tinymlaas_client.comparison.peers import Peer, known_model, peer_method, peer_name, peer_of
from tinymlaas_client.comparison.race import Comparison, Entry, Figure, compare, entry_of, front

__all__ = [
    "Bar",
    "Comparison",
    "Entry",
    "Figure",
    "Peer",
    "Point",
    "bars",
    "compare",
    "entry_of",
    "front",
    "known_model",
    "page",
    "peer_method",
    "peer_name",
    "peer_of",
    "scatter",
    "stacked",
    "standalone",
]
