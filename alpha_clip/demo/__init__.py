"""A page to try the model on: python -m alpha_clip.demo --help

Imports the core, `search` and, for clicks, `pipeline`; nothing imports this. Needs gradio.
"""
