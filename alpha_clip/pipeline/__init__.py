"""Data for training, and embeddings, made from many shards: python -m alpha_clip.pipeline --help

Imports the core, `training` and `evaluation`; none of them imports this.
"""

from .caption import Caption
from .captioners import Captioner, ClipCaptioner, TransformersCaptioner
from .embedding import Embed
from .filters import Distinct, Fitting, Named, Sourced
from .grounding import AnnotateGrounding
from .inspection import inspect
from .ledger import Ledger
from .on_ray import Cluster
from .run import run
from .samples import Sample, Stage, Target
from .segment import Segment
from .segmenters import ColourSegmenter, SamSegmenter, Segmenter

__all__ = [
    "AnnotateGrounding",
    "Caption",
    "Captioner",
    "ClipCaptioner",
    "Cluster",
    "ColourSegmenter",
    "Distinct",
    "Embed",
    "Fitting",
    "Ledger",
    "Named",
    "SamSegmenter",
    "Sample",
    "Segment",
    "Segmenter",
    "Sourced",
    "Stage",
    "Target",
    "TransformersCaptioner",
    "inspect",
    "run",
]
