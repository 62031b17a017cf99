"""Both towers as ONNX graphs, for CPUs and the edge; needs the extra ``onnx``.

    python -m alpha_clip.onnx ViT-B/16 --out served

>>> import alpha_clip
>>> model = alpha_clip.onnx.load("served", threads=2)  # doctest: +SKIP
>>> rgb, alpha = model.preprocess(image, mask)  # doctest: +SKIP
>>> features = model.encode_image(rgb, alpha)  # doctest: +SKIP
"""

from .export import export as export
from .serving import OnnxCLIP as OnnxCLIP
from .serving import load as load

__all__ = ["OnnxCLIP", "export", "load"]
