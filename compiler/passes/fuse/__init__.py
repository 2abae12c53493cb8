"""Plain ops to fused ones, where the target has a kernel for them."""
