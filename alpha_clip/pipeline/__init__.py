"""Make data for training, and embeddings, from many shards: python -m alpha_clip.pipeline --help

Imports the core, `training` and `evaluation`; none of them imports this.
"""

from .caption import Caption, Join
from .captioners import Captioner, ClipCaptioner, TransformersCaptioner
from .classification import AnnotateClassification
from .cutting import CutOut
from .duplicates import Deduplicate
from .embedding import Embed
from .filters import Apart, Distinct, Fitting, Named, Sized, Sourced
from .grounding import AnnotateGrounding
from .inspection import inspect
from .ledger import Ledger
from .mask_generators import ColourMaskGenerator, MaskGenerator, SamMaskGenerator
from .on_ray import Cluster
from .run import run
from .samples import Sample, Stage, Target
from .scoring import Score
from .segment import Segment, SegmentAll
from .segmenters import ColourSegmenter, SamSegmenter, Segmenter

__all__ = [
    "AnnotateClassification",
    "AnnotateGrounding",
    "Apart",
    "Caption",
    "Captioner",
    "ClipCaptioner",
    "Cluster",
    "ColourMaskGenerator",
    "ColourSegmenter",
    "CutOut",
    "Deduplicate",
    "Distinct",
    "Embed",
    "Fitting",
    "Join",
    "Ledger",
    "MaskGenerator",
    "Named",
    "SamMaskGenerator",
    "SamSegmenter",
    "Sample",
    "Score",
    "Segment",
    "SegmentAll",
    "Segmenter",
    "Sized",
    "Sourced",
    "Stage",
    "Target",
    "TransformersCaptioner",
    "inspect",
    "run",
]
