"""One module for each kernel: `cases(kernel, tokens, device)` yields what is to be measured of it."""
