"""What several benchmarks share. Programs in the folder above import it as `lib`."""
