"""Give image towers of other libraries an alpha channel, alone or inside the pipelines that use them.

`add_alpha(tower)` adds it. A mask then comes as the fourth channel of the pixels, which `processor_with_mask` makes,
or through `focus`. `load_alpha_weights` loads the authors' weights, `from_pretrained` opens what was saved, and
`open_tower` opens a CLIP or SigLIP by name. None of these libraries is imported here.
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
