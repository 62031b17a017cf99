"""What openai-clip 1.0 still imports from setuptools' old ``pkg_resources``, which today's setuptools no longer has."""

import packaging.version

packaging = packaging
