"""What tests, ``fastnn check`` and the benchmarks share: cases, float64 oracles, error bounds, the emulator."""
