"""The Triton kernels that a package is given: what their templates are told, and the tiles that they run with.

A kernel is `templates/kernels/<name>.py.jinja`, printed as `kernels/<name>.py`; the module `<name>` here says what the
template wants beside the constants of the model: `values(graph, spec, target)`. Its tiles stand in `tiles/<name>.toml`.
"""
