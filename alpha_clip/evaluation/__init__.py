"""Measure how well a model sees the regions of a picture, by which way of looking, and where it fails.

``python -m alpha_clip.evaluation scenes`` runs the built-in benchmark, offline; other names run the paper's protocols
on your data; ``doctor`` looks for what is wrong with a model. A `Task` holds questions about `Sample`s; `run` puts
them to `Subject`s that look in several `Way`s; the results are written as JSON, Markdown and one HTML file.
"""

from .run import Run as Run
from .run import run as run
from .samples import Column as Column
from .samples import Matching as Matching
from .samples import Naming as Naming
from .samples import Referring as Referring
from .samples import Sample as Sample
from .samples import Task as Task
from .samples import UnusableSample as UnusableSample
from .subjects import Subject as Subject
from .subjects import find as find
from .ways import Way as Way
from .ways import parse as parse
