"""An alpha channel for the image towers that people run already, and for the pipelines around them.

`add_alpha(tower)` puts it in place; the mask comes as a fourth channel of the pixels, as `processor_with_mask` makes
them, or through `focus`. `load_alpha_weights` brings the authors' weights; `from_pretrained` brings back what was
saved, and `open_tower` a CLIP or SigLIP by name. None of the libraries is imported here.
"""

from .files import from_pretrained as from_pretrained
from .opening import holds_alpha as holds_alpha
from .opening import open_tower as open_tower
from .processors import ProcessorWithMask as ProcessorWithMask
from .processors import processor_with_mask as processor_with_mask
from .towers import add_alpha as add_alpha
from .towers import alpha_of as alpha_of
from .towers import alpha_weight as alpha_weight
from .towers import focus as focus
from .towers import has_alpha as has_alpha
from .towers import remove_alpha as remove_alpha
from .weights import copy_tower as copy_tower
from .weights import load_alpha_weights as load_alpha_weights
