"""Divisors, for what messages propose."""

from math import isqrt


def divisor_near(number: int, wanted: int) -> int:
    """The largest divisor up to `wanted`, found in sqrt(number) steps."""
    pairs = [(small, number // small) for small in range(1, isqrt(number) + 1) if number % small == 0]
    return max(divisor for pair in pairs for divisor in pair if divisor <= wanted)
