"""The Triton kernels of a package.

A kernel is a template, `templates/kernels/<name>.py.jinja`, printed as `kernels/<name>.py`; a record, `Kernel`, in
`registry.py`, if there is anything to know about it; and its tiles, `tiles/<name>.toml`, if it launches.
"""
