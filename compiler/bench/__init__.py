"""What `dsc bench` measures: the kernels of an emitted package, at the sizes of its model."""
