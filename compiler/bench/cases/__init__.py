"""A module for each kernel that is measured: its `cases(kernel, sizes, tokens, device)`, with the record's sizes."""
